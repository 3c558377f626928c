"""Errors, each said where it happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import page_walk
import pytest
from fake_api.api import FakeApi, Refused
from page_visits import Visits, choose

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_without_a_sweep_the_questions_say_so_and_the_rest_works(visit: Visits, api: FakeApi) -> None:
    visit.may_fail = True
    api.has_sweep = False
    page = visit()
    page.goto(api.url)
    page.locator("#questions-error", has_text="morfi sweep --ckpts RUN").wait_for()
    page_walk.wait_for_list(page, "latent")
    page.locator("#source").get_by_text("All", exact=True).click()
    page_walk.wait_for_list(page, "question")
    assert page.locator("#questions-error").inner_text() == ""
    choose(page)
    page.locator("#source").get_by_text("Top of the latent").click()
    page.locator("#question-list", has_text="activation").wait_for()
    assert page_walk.rows(page, "question").count() == 11  # ten, and one at a quantile
    page.locator("#question-list", has_text="more than 50.0 % of those that it fires on").wait_for()


def test_an_error_stands_where_it_happened_and_can_be_tried_again(
    ready: Callable[..., Page], visit: Visits, api: FakeApi
) -> None:
    visit.may_fail = True
    page = ready()
    choose(page, question=None)
    busy = Refused(503, "a checkpoint is being loaded", "ServiceUnavailable", Retry_After="3")
    api.failures["/v1/morfi/compare"] = busy
    page_walk.rows(page, "question").first.click()
    page.locator("#ask-error", has_text="a checkpoint is being loaded Try again in 3 s.").wait_for()
    assert page.locator("#latents-error, #questions-error, #latent-error").all_inner_texts() == [""] * 3
    assert page.locator("#default-answer .note").inner_text() == "stopped: not the whole answer"
    del api.failures["/v1/morfi/compare"]
    page.locator("#ask-error").get_by_role("button", name="Try again").click()
    page_walk.wait_for_answers(page, "Steered")
    assert page.locator("#ask-error").inner_text() == ""


@pytest.mark.parametrize(
    ("ends", "words"),
    [("breaks", "not whole"), ("stops", "stopped before its end"), ("fails", "the engine stopped")],
)
def test_a_stream_that_does_not_reach_its_end_says_so(
    ready: Callable[..., Page], visit: Visits, api: FakeApi, ends: str, words: str
) -> None:
    visit.may_fail = True
    page = ready()
    choose(page, question=None)
    api.stream_ends, api.n_sent = ends, 3  # of Germ, Fran, any, ce: the default answer has its last piece
    page_walk.rows(page, "question").first.click()
    page.locator("#ask-error", has_text=words).wait_for()
    assert page.locator("#steered-answer .said").inner_text() == "Fran"
    assert page.locator(".answer .note").all_inner_texts() == ["stopped: not the whole answer"] * 2
    assert page.locator(".answer .verdict").all_inner_texts() == ["", ""]
    assert page.locator("#pair mark").count() == 0


def test_a_server_that_is_gone(ready: Callable[..., Page], visit: Visits) -> None:
    visit.may_fail = True
    page = ready()
    page.context.set_offline(True)
    page_walk.rows(page, "latent").first.click()
    page.locator("#latent-error", has_text="The server cannot be reached.").wait_for()
