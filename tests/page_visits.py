"""Visits to the page: opening it, choosing on it, waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import page_walk
from fake_api.api import FakeApi

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

MINUS, DASH, TIMES = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"
PROXY = "morfi.example"


@dataclass
class Visits:
    """Opens pages in contexts of their own, and remembers all that went wrong in them."""

    browser: Browser
    origin: str
    may_fail: bool = False  # a request that fails on purpose is no error of the page
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    contexts: list[Any] = field(default_factory=list)

    def __call__(self, *, width: int = 1440, height: int = 900, **options: Any) -> Page:
        context = self.browser.new_context(viewport={"width": width, "height": height}, **options)
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._note)
        page.on("request", lambda request: self._check(request.url))
        return page

    def _note(self, message: Any) -> None:
        is_response = message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not (is_response and self.may_fail):
            self.errors.append(message.text)

    def _check(self, url: str) -> None:
        if not url.startswith((self.origin, "data:")):
            self.foreign.append(url)


def choose(page: Page, latent: int = 0, question: int | None = 0) -> None:
    """Chooses by place a latent, and a question whose answers are waited for."""
    page_walk.rows(page, "latent").nth(latent).click()
    page.locator("#statistics dt").first.wait_for()
    if question is not None:
        page_walk.rows(page, "question").nth(question).click()
        page_walk.wait_for_answers(page, "Steered")


def eventually(holds: Callable[[], object]) -> bool:
    """Whether `holds` comes true within twenty seconds."""
    until = time.monotonic() + 20
    while not holds() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(holds())


def compared(api: FakeApi) -> list[Any]:
    """The bodies of the comparisons that were asked for."""
    return [body for _, path, body in api.requests if path == "/v1/morfi/compare"]
