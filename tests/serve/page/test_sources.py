"""What the page steers along, where the server has several things: find runs, other SAEs and vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import page_walk
from fake_api.api import FakeApi
from fake_api.contents import OTHER_SAE, SAE

if TYPE_CHECKING:
    from playwright.sync_api import Page

QUESTION = "Which country is Toulouse in?"


def asked(page: Page, api: FakeApi) -> Any:
    """The body of the comparison that the page asks for."""
    page.locator("#question").fill(QUESTION)
    page.locator("#run").click()
    page.locator(page_walk.WHOLE).wait_for()
    return [body for method, path, body in api.requests if path == "/v1/morfi/compare"][-1]


def test_one_find_run_leaves_nothing_to_choose(ready: Callable[..., Page]) -> None:
    assert not ready().locator("#along-row").is_visible()


def test_a_latent_of_an_sae_without_a_find_run_is_reached_by_its_number(
    ready: Callable[..., Page], api: FakeApi
) -> None:
    api.has_more = True
    page = ready()
    page.locator("#along").select_option(OTHER_SAE)
    page.locator("#latent-list", has_text="type a number above").wait_for()
    assert "layer 12 of 30" in page.locator("#about").inner_text()
    assert not page.locator("#sort").is_visible()
    latent = api.latents[7]["id"]
    page.locator("#goto-id").fill(str(latent))
    page.locator("#goto button").click()
    page.locator("#neighbours li").first.wait_for()
    assert page.locator("#statistics").inner_text() == ""
    assert page.locator("#trend svg").count() == 0
    assert asked(page, api)["latents"] == [{"sae": OTHER_SAE, "id": latent, "op": "add"}]
    page.reload()
    page.locator("#latent-title", has_text=f"Latent {latent}").wait_for()
    assert page.locator("#along").input_value() == OTHER_SAE


def test_a_vector_is_steered_after_the_layer_that_is_typed(ready: Callable[..., Page], api: FakeApi) -> None:
    api.has_more = True
    page = ready()
    page.locator("#along").select_option("vectors")
    page_walk.rows(page, "latent").get_by_text("brevity").click()
    page.locator("#latent-title", has_text="Vector brevity").wait_for()
    assert page.locator("#op input").evaluate_all("all => all.map((one) => one.value)") == ["add", "project"]
    page.locator("#layer").fill("12")
    assert asked(page, api)["vectors"] == [{"vector": "brevity", "layer": 12, "op": "add"}]
    page.locator("#steered-answer .note", has_text="layer 12").wait_for()
    again = ready(page.url.removeprefix(api.url))
    again.locator("#latent-title", has_text="Vector brevity").wait_for()
    assert again.locator("#layer").input_value() == "12"
    page.locator("#along").select_option(label=f"{SAE} \u00b7 find-20261124-221618-d96b")
    page_walk.wait_for_list(page, "latent")
    assert page.locator("#sort").is_visible()


def test_a_large_strength_is_meant(ready: Callable[..., Page], api: FakeApi) -> None:
    page = ready()
    page_walk.rows(page, "latent").first.click()
    page.locator("#strength-number").fill("3")
    assert "may break the text" in page.locator("#op-plainly").inner_text()
    assert asked(page, api)["allow_large"] is True
