"""A walk over the page of `morfi serve`, as a user would take it; the same for a fake and for a real server.

`python tests/page_walk.py URL [FOLDER]` takes it, with the key of MORFI_API_KEY if there is one,
prints what was read and puts screenshots into FOLDER.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
# Both answers when they are whole. No `wait_for_function`: the page's policy forbids the `eval` in it.
WHOLE = '#ask:has(#stop:disabled) #pair:not(:has(.answer:not([aria-busy="false"]), .said.old))'


@dataclass(frozen=True)
class Walk:
    """The messages of the page on the way."""

    latent: str  # the chosen one's name for screen readers
    n_statistics: int
    question: str
    accepted: str
    strength: str  # as the steered answer's title has it
    default: str
    steered: str
    verdicts: tuple[str, str]
    applied: str
    n_marks: int  # runs of words that differ, in both answers
    n_strengths: int  # rows of the table of all strengths


def chromium() -> str | None:
    """The path of a Chromium or Chrome, if this machine has one."""
    return next(filter(None, map(shutil.which, CHROMIUMS)), None)


@contextmanager
def launched(path: str, *arguments: str) -> Iterator[Browser]:
    """A headless Chromium, with these arguments and the usual ones."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS, *arguments])
        try:
            yield browser
        finally:
            browser.close()


def give_key(page: Page, key: str) -> None:
    """Types `key` into the dialog that is open."""
    page.locator("#key").fill(key)
    page.get_by_role("button", name="Use this key").click()


def rows(page: Page, name: str) -> Locator:
    """The entries of the list of latents or questions."""
    return page.locator(f"#{name}-list li:not([aria-disabled])")


def wait_for_list(page: Page, name: str) -> None:
    """Returns when the list has been read and holds something."""
    page.locator(f'#{name}-list[aria-busy="false"] li:not([aria-disabled])').first.wait_for()


def wait_for_answers(page: Page, strength: str) -> None:
    """Returns when both answers are whole, the steered one at `strength` as its title has it."""
    page.locator("#steered-title", has_text=strength).wait_for()
    page.locator(WHOLE).wait_for()


def walk(page: Page, url: str, key: str = "", *, alpha: float = -0.6, timeout_s: float = 60.0) -> Walk:
    """Opens the page, takes a rising latent, a lost question and other strengths, and reads the answers.

    Raises playwright's errors where something does not come within `timeout_s`.
    """
    page.set_default_timeout(timeout_s * 1e3)
    page.goto(url)
    if key:
        give_key(page, key)
    wait_for_list(page, "latent")
    with page.expect_response(lambda response: "direction=rising" in response.url):
        page.locator("#direction").get_by_text("Rising").click()
    wait_for_list(page, "latent")
    first = rows(page, "latent").first
    latent = first.get_attribute("aria-label") or ""
    first.click()
    page.locator("#trend svg circle").first.wait_for()
    wait_for_list(page, "question")
    rows(page, "question").first.click()
    wait_for_answers(page, "Steered")
    page.locator("#strength-number").fill(f"{alpha:g}")
    wait_for_answers(page, f"Steered, {alpha:+g}".replace("-", "\N{MINUS SIGN}"))
    page.get_by_role("button", name="All strengths").click()
    page.locator("#all").wait_for()
    page.locator(WHOLE).wait_for()
    return _read(page, latent)


def _read(page: Page, latent: str) -> Walk:
    def text(selector: str) -> str:
        return page.locator(selector).inner_text()

    return Walk(
        latent,
        page.locator("#statistics dt").count(),
        page.locator("#question").input_value(),
        text("#accepted"),
        text("#steered-title"),
        text("#default-answer .said"),
        text("#steered-answer .said"),
        (text("#default-answer .verdict"), text("#steered-answer .verdict")),
        text("#steered-answer .note"),
        page.locator("#pair mark").count(),
        page.locator("#all tbody tr").count(),
    )


def _main(url: str, folder: str | None = None) -> None:
    path = chromium()
    if path is None:
        sys.exit(f"none of {', '.join(CHROMIUMS)} is on PATH")
    with launched(path) as browser:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        print(walk(page, url, os.environ.get("MORFI_API_KEY", "")))  # noqa: T201
        if folder is not None:
            page.screenshot(path=Path(folder) / "light.png")
            page.emulate_media(color_scheme="dark")
            page.screenshot(path=Path(folder) / "dark.png")
            page.set_viewport_size({"width": 360, "height": 740})
            page.screenshot(path=Path(folder) / "phone.png", full_page=True)


if __name__ == "__main__":
    _main(*sys.argv[1:3])
