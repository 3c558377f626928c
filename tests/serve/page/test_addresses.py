"""Views that are shared by their address."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import page_walk
from fake_api.api import FakeApi
from page_visits import MINUS, choose

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_the_address_opens_the_same_view(ready: Callable[..., Page], api: FakeApi) -> None:
    page = ready()
    choose(page, latent=2, question=4)
    page.locator("#strength-number").fill("-3.5")
    page_walk.wait_for_answers(page, f"Steered, {MINUS}3.5")
    address = page.evaluate("location.hash")
    shown = ("#latent-title", "#accepted", "#steered-title", "#default-answer .said", "#steered-answer .said")
    told = [page.locator(place).inner_text() for place in shown]
    other = ready(address)
    page_walk.wait_for_answers(other, f"Steered, {MINUS}3.5")
    assert [other.locator(place).inner_text() for place in shown[2:]] == told[2:]
    assert other.locator("#latent-title").inner_text() == told[0]
    assert told[1].startswith(other.locator("#accepted").inner_text())
    assert other.locator("#question").input_value() == page.locator("#question").input_value()
    assert float(other.locator("#strength").input_value()) < 0


def test_what_is_right_is_for_the_server_to_say_and_not_for_who_made_the_address(
    ready: Callable[..., Page], api: FakeApi
) -> None:
    latent = api.latents[0]["id"]
    page = ready(f"#latent={latent}&strength=-1&q=Which+country+is+Toulouse+in%3F&a=Germany")
    page_walk.wait_for_answers(page, "Steered")
    assert page.locator("#accepted").inner_text().startswith("Accepted: France")
    assert page.locator(".answer .verdict").all_inner_texts() == ["✗ wrong", "✓ right"]
    page.locator("#source").get_by_text("All", exact=True).click()
    assert "Germany" not in page.evaluate("location.hash")
    typed = ready(f"#latent={latent}&strength=-1&q=Who+am+I%3F&a=the+town+of+nowhere")
    page_walk.wait_for_answers(typed, "Steered")
    assert typed.locator("#accepted").inner_text() == ""
    assert typed.locator(".answer .verdict").all_inner_texts() == ["", ""]


def test_back_returns_to_the_latent_before(ready: Callable[..., Page]) -> None:
    page = ready()
    choose(page, latent=0, question=None)
    first = page.locator("#latent-title").inner_text()
    choose(page, latent=1)
    page.go_back()
    page.locator("#default-answer .said", has_text="no answer yet").wait_for()
    page.go_back()
    page.locator("#latent-title", has_text=first).wait_for()
    page.go_back()
    page.locator("#latent-title", has_text="No latent chosen").wait_for()
    assert page.locator("#latent-list [aria-selected=true]").count() == 0
