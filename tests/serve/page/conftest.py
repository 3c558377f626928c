"""A Chromium for all tests of this folder, and a fake of the HTTP interface for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import page_walk
import pytest
from fake_api.api import FakeApi
from fake_api.serving import serving
from page_visits import PROXY, Visits

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """One for a module, for its loop runs while it lives; it takes this machine for the host of a proxy."""
    with page_walk.launched(chromium, f"--host-resolver-rules=MAP {PROXY} 127.0.0.1") as browser:
        yield browser


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serving(FakeApi()) as api:
        yield api


@pytest.fixture
def visit(browser: Browser, api: FakeApi) -> Iterator[Visits]:
    """Opens pages; none of them may have logged an error or asked anyone but the server."""
    visits = Visits(browser, api.url)
    yield visits
    for context in visits.contexts:
        context.close()
    assert visits.errors == []
    assert visits.foreign == []


@pytest.fixture
def ready(visit: Visits, api: FakeApi) -> Callable[..., Page]:
    """Opens the page and waits for both lists."""

    def open_(fragment: str = "", **options: Any) -> Page:
        page = visit(**options)
        page.goto(api.url + fragment)
        page_walk.wait_for_list(page, "latent")
        page_walk.wait_for_list(page, "question")
        return page

    return open_
