"""The checkpoint that is served changes, by this page or by another client."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import page_walk
import pytest
from fake_api.api import FakeApi, Refused
from fake_api.contents import FIND_RUN, SAE
from page_visits import Visits, choose

if TYPE_CHECKING:
    from playwright.sync_api import Page

OTHER = "level-0-seed-0-epoch-10"


OTHER_SHOWN = "M_0 · 10 epochs · 95.0 % · served"


def test_a_load_that_fails_says_why(ready: Callable[..., Page], visit: Visits, api: FakeApi) -> None:
    visit.may_fail = True
    page = ready()
    path = "/v1/morfi/checkpoints/level-0-seed-0-epoch-10/load"
    api.failures[path] = Refused(500, "the weights of M_0 are not as they were", "InternalServerError")
    page.locator("#checkpoint").select_option("level-0-seed-0-epoch-10")
    page.get_by_role("button", name="Load").click()
    page.locator("#header-error", has_text="not as they were").wait_for()
    assert page.locator("#load-status").inner_text() == ""
    assert page.get_by_role("button", name="Load").is_enabled()


def test_a_server_that_loads_nothing(ready: Callable[..., Page], api: FakeApi) -> None:
    api.can_load = False
    page = ready()
    page.locator("#checkpoint").select_option("base")
    assert page.get_by_role("button", name="Load").is_disabled()


def test_answers_in_the_way_of_a_load_are_ended_on_request(
    ready: Callable[..., Page], visit: Visits, api: FakeApi
) -> None:
    visit.may_fail = True
    api.is_busy = True
    page = ready()
    choose(page)
    page.locator("#checkpoint").select_option(OTHER)
    page.get_by_role("button", name="Load", exact=True).click()
    page.locator("#header-error", has_text="still running").wait_for()
    page.get_by_role("button", name="End them and load").click()
    page.locator("#load-status", has_text="Loaded in").wait_for()
    page.locator("#default-answer .said:not(.old)", has_text="France").wait_for()
    assert page.locator("#header-error").inner_text() == ""


def wait_for_other(page: Page) -> None:
    """Returns when the page shows M_0 as served, and nothing of the checkpoint before."""
    page.locator("#checkpoint option:checked", has_text=OTHER_SHOWN).wait_for(state="attached")
    page.locator("#load-status", has_text="Another client has loaded this checkpoint.").wait_for()
    page.locator("#question-list", has_text="lost no question").wait_for()
    page.locator("#default-answer .said:not(.old)", has_text="France").wait_for()
    page_walk.wait_for_answers(page, "Steered")
    assert not page.locator("#all").is_visible()


@pytest.mark.parametrize("does", ["asks", "asks from the table", "reads a list", "comes back"])
def test_after_another_client_loads_a_checkpoint_one_is_on_the_screen(
    ready: Callable[..., Page], api: FakeApi, does: str
) -> None:
    page = ready()
    choose(page)
    page.get_by_role("button", name="All strengths").click()
    page.locator("#all").wait_for()
    page.locator(page_walk.WHOLE).wait_for()
    assert page.locator("#default-answer .said").inner_text() == "Germany"
    api.served = OTHER
    if does == "asks":
        page.get_by_role("button", name="Ask").click()
    elif does == "asks from the table":
        page.locator("#all tbody tr").nth(1).get_by_role("button").click()
    elif does == "reads a list":
        page.locator("#source").get_by_text("All", exact=True).click()
        page.locator("#source").get_by_text("Lost by the checkpoint").click()
    else:
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    wait_for_other(page)
    latent = int(page.locator("#latent-title").inner_text().split()[1])
    details = f"/v1/morfi/latents/{latent}?sae={SAE}&find_run={FIND_RUN}"
    assert api.requests.count(("GET", details, None)) == 2  # what it fires on, as well


def test_a_table_that_is_asked_of_the_new_checkpoint_stays(ready: Callable[..., Page], api: FakeApi) -> None:
    page = ready()
    choose(page)
    api.served = OTHER
    page.get_by_role("button", name="All strengths").click()
    page.locator("#checkpoint option:checked", has_text=OTHER_SHOWN).wait_for(state="attached")
    page.locator(page_walk.WHOLE).wait_for()
    assert page.locator("#all tbody tr .said").all_inner_texts()[3:5] == ["France"] * 2
    assert page.locator("#all").is_visible()
