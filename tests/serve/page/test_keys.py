"""Keys that the server asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import page_walk
from fake_api.api import FakeApi
from page_visits import Visits, choose

if TYPE_CHECKING:
    pass


def test_a_key_is_asked_for_and_kept_in_memory_only(visit: Visits, api: FakeApi) -> None:
    visit.may_fail = True
    api.user_key, api.admin_key = "user-key-1", "admin-key-1"
    page = visit()
    page.goto(api.url)
    dialog = page.locator("#key-dialog")
    dialog.wait_for()
    assert page.evaluate("document.activeElement.id") == "key"
    assert not page.locator("#key-error").is_visible()
    page_walk.give_key(page, "with a blank")
    page.locator("#key-error", has_text="without blanks").wait_for()
    page_walk.give_key(page, "wrong")
    page.locator("#key-error", has_text="that key is not known here").wait_for()
    page_walk.give_key(page, "user-key-1")
    page_walk.wait_for_list(page, "question")
    choose(page)
    assert not dialog.is_visible()
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    assert "key" not in page.evaluate("location.href")
    assert page.locator("#key").input_value() == ""
    assert set(api.keys_seen) == {"", "wrong", "user-key-1"}


def test_without_a_key_the_page_says_what_it_needs(visit: Visits, api: FakeApi) -> None:
    visit.may_fail = True
    api.user_key = "user-key-1"
    page = visit()
    page.goto(api.url)
    page.locator("#key-dialog").wait_for()
    page.keyboard.press("Escape")
    page.locator("#header-error", has_text="asks for an API key").wait_for()
    page.get_by_role("button", name="Try again").click()
    page_walk.give_key(page, "user-key-1")
    page_walk.wait_for_list(page, "question")
    assert page.locator("#header-error").inner_text() == ""


def test_loading_a_checkpoint_asks_for_the_admin_key_only_then(visit: Visits, api: FakeApi) -> None:
    visit.may_fail = True
    api.user_key, api.admin_key = "user-key-1", "admin-key-1"
    page = visit()
    page.goto(api.url)
    page_walk.give_key(page, "user-key-1")
    page_walk.wait_for_list(page, "question")
    choose(page)
    page.locator("#checkpoint").select_option("level-0-seed-0-epoch-10")
    page.get_by_role("button", name="Load").click()
    page.locator("#key-title", has_text="Admin key").wait_for()
    page_walk.give_key(page, "admin-key-1")
    page.locator("#load-status", has_text="Loaded in").wait_for()
    assert api.served == "level-0-seed-0-epoch-10"
    page.locator("#question-list", has_text="lost no question").wait_for()
    page.locator("#default-answer .said", has_text="France").wait_for()  # asked again, of the new one
    assert page.get_by_role("button", name="Load").is_disabled()
    page.locator("#checkpoint").select_option("level-100-seed-0-epoch-10")
    page.get_by_role("button", name="Load").click()
    page_walk.wait_for_list(page, "question")
    assert api.served == "level-100-seed-0-epoch-10"  # the key was remembered
