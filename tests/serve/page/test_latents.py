"""The list of latents, and what the page shows of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import page_walk
import pytest
from fake_api.api import FakeApi
from fake_api.contents import D_SAE, LEVELS
from page_visits import DASH, TIMES, Visits, choose

if TYPE_CHECKING:
    from playwright.sync_api import Page


@pytest.mark.parametrize(("label", "direction"), [("Falling", "falling"), ("Rising", "rising")])
def test_the_list_is_filtered_sorted_and_paged(
    ready: Callable[..., Page], api: FakeApi, label: str, direction: str
) -> None:
    page = ready()
    with page.expect_response(lambda response: f"direction={direction}" in response.url):
        page.locator("#direction").get_by_text(label).click()
    page_walk.wait_for_list(page, "latent")
    names = page_walk.rows(page, "latent").evaluate_all(
        "rows => rows.map((row) => row.getAttribute('aria-label'))"
    )
    n = sum(row["direction"] == direction and row["selected"] for row in api.latents)
    assert len(names) == min(n, 20)
    assert all(f", {direction}," in name and name.endswith(", selected") for name in names)
    with page.expect_response(lambda response: "selected=any&sort=slope&order=asc" in response.url):
        page.locator("#selected").uncheck()
        page.locator("#sort").select_option("slope asc")
    page.locator("#last-column", has_text="slope").wait_for()
    page.locator("#direction").get_by_text("All", exact=True).click()
    page.locator("#latents-range", has_text=f"1{DASH}20 of 300").wait_for()
    page.get_by_role("button", name="Next").first.click()
    page.locator("#latents-range", has_text=f"21{DASH}40 of 300").wait_for()
    page.get_by_role("button", name="Previous").first.click()
    page.locator("#latents-range", has_text=f"1{DASH}20 of 300").wait_for()


def test_a_latent_shows_its_trend_statistics_and_neighbours(ready: Callable[..., Page], api: FakeApi) -> None:
    page = ready()
    choose(page, question=None)
    latent = int(page.locator("#latent-title").inner_text().split()[1])
    row = next(row for row in api.latents if row["id"] == latent)
    chart = page.locator("#trend svg")
    assert chart.locator("circle").count() == len(LEVELS)
    heights = chart.locator("circle").evaluate_all("all => all.map((one) => Number(one.getAttribute('cy')))")
    assert sorted(heights, reverse=row["direction"] == "rising") == heights  # y runs downwards
    words = chart.get_attribute("aria-label") or ""
    assert all(f"{level} %" in words for level in LEVELS)
    assert {"mean activation", "share of Unknown in training (%)", "served"} <= set(
        chart.locator("text").all_inner_texts()
    ) | set(chart.locator("text").all_text_contents())
    tokens = page.locator("#tokens").inner_text()
    assert '" Par\\n"' in tokens
    assert '"no"' in tokens
    assert page.locator("#density rect").count() == 2
    assert page.locator("#density-words").inner_text() == "Fires on 9 of 40 questions, up to 2."
    told = page.locator("#statistics").inner_text()
    assert f"{row['score']:.2f}" in told
    assert f"{100 * row['stability']:.1f} %" in told
    assert f"4.0 {TIMES} 10⁻⁴" in told
    page.locator("#neighbours button").nth(3).click()
    page.locator(f"#latent-title:not(:text-is('Latent {latent}'))").wait_for()
    assert page.evaluate("document.activeElement.id") == "latent-title"


def test_a_latent_by_number_and_one_that_there_is_not(
    ready: Callable[..., Page], visit: Visits, api: FakeApi
) -> None:
    visit.may_fail = True
    page = ready()
    wanted = api.latents[250]["id"]
    page.locator("#goto-id").fill(str(wanted))
    page.locator("#goto-id").press("Enter")
    page.locator("#statistics dt").first.wait_for()
    assert "no trend" in page.locator("#latent-kind").inner_text()
    assert "not resampled" in page.locator("#statistics").inner_text()
    missing = min(set(range(D_SAE)) - {row["id"] for row in api.latents})
    page.locator("#goto-id").fill(str(missing))
    page.locator("#goto-id").press("Enter")
    page.locator("#latent-error", has_text=f"latent {missing} is out of range").wait_for()
    assert not page.locator("#statistics").is_visible()


def test_without_selected_latents_all_are_shown(ready: Callable[..., Page], api: FakeApi) -> None:
    api.latents = [row | {"selected": False} for row in api.latents]
    page = ready()
    assert not page.locator("#selected").is_checked()
    assert page_walk.rows(page, "latent").count() == 20


@pytest.mark.parametrize(("fdr", "is_warned"), [(0.04, False), (1.0, True)])
def test_the_runs_false_discovery_rate_stands_above_its_latents(
    ready: Callable[..., Page], api: FakeApi, fdr: float, *, is_warned: bool
) -> None:
    api.fdr = fdr
    page = ready()
    words = page.locator("#chance").inner_text()
    assert f"False discovery rate {fdr:.2f} for the 48 latents with |S| ≥ 21" in words
    assert ("Chance alone gives about as many" in words) is is_warned
    choose(page, question=None)
    assert "False discovery rate" in page.locator("#statistics").inner_text()


def test_means_that_are_not_known_leave_gaps(ready: Callable[..., Page], api: FakeApi) -> None:
    for row in api.latents:
        row["means"] = [None, *row["means"][1:]]
    api.latents[0]["means"] = [None] * 7
    page = ready()
    wanted = api.latents[1]["id"]
    for latent, n in ((wanted, 6), (api.latents[0]["id"], 0)):
        page.locator("#goto-id").fill(str(latent))
        page.locator("#goto-id").press("Enter")
        page.locator("#latent-title", has_text=str(latent)).wait_for()
        page.locator('#latent[aria-busy="false"]').wait_for()
        assert page.locator("#trend circle").count() == n
