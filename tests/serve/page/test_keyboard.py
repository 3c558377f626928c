"""Everything by keyboard alone, and every control with a name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import page_walk
import pytest
from fake_api.api import FakeApi
from page_visits import DASH, MINUS, choose, compared

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOCUS = """() => {
  const element = document.activeElement;
  const shown = element.closest(".segments label") ?? element;
  const style = getComputedStyle(shown);
  const name = element.id || element.name || element.className || element.textContent.trim();
  return [name, style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0];
}"""


def tab_to(page: Page, name: str, *, at_most: int = 45) -> None:
    """Presses Tab until the element `name` has the focus; wherever it passes, the focus must be seen."""
    for _ in range(at_most):
        page.keyboard.press("Tab")
        focused, is_visible = page.evaluate(FOCUS)
        assert is_visible, f"no visible focus on {focused}"
        if focused == name:
            return
    pytest.fail(f"Tab does not reach {name}")


def test_everything_by_keyboard_alone(ready: Callable[..., Page], api: FakeApi) -> None:
    page = ready()
    press = page.keyboard.press
    tab_to(page, "skip", at_most=1)
    tab_to(page, "direction")
    with page.expect_response(lambda response: "direction=rising" in response.url):
        press("ArrowRight")
    page_walk.wait_for_list(page, "latent")
    tab_to(page, "latent-list")
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "Enter"):
        press(key)
    page.locator("#statistics dt").first.wait_for()
    second = page_walk.rows(page, "latent").nth(1)
    assert second.get_attribute("aria-selected") == "true"
    assert page.locator("#latent-list").get_attribute("aria-activedescendant") == second.get_attribute("id")
    tab_to(page, "question-list")
    for key in ("End", "Home", "ArrowDown", "Enter"):
        press(key)
    page_walk.wait_for_answers(page, "Steered")
    assert page.locator("#question").input_value() == "Which country is Recife in?"
    assert page.locator("#default-answer .said").inner_text() == "Spain"
    tab_to(page, "strength")
    before = float(page.locator("#strength-number").input_value())
    for _ in range(3):
        press("ArrowLeft")
    wanted = page.locator("#strength-number").input_value()
    assert before - 1 < float(wanted) < before
    page_walk.wait_for_answers(page, f"Steered, {wanted.replace('-', MINUS)}")
    assert compared(api)[-1]["strengths"] == [float(wanted)]
    assert len(compared(api)) == 2  # once the strength rests, not at each step
    outcome = page.locator("#outcome").inner_text()
    assert outcome == f"Default: Spain, wrong. Steered, {wanted.replace('-', MINUS)}: Brazil, right."
    tab_to(page, "run-all")
    press("Enter")
    page.locator("#all").wait_for()
    page.locator(page_walk.WHOLE).wait_for()
    tab_to(page, "plain")  # the first strength of the table
    press("Enter")
    page_walk.wait_for_answers(page, f"Steered, {MINUS}1")


def test_the_edges_of_a_list_turn_its_pages(ready: Callable[..., Page], api: FakeApi) -> None:
    page = ready()
    active = "document.querySelector('#latent-list .at')"
    page.locator("#latent-list").focus()
    first = page.evaluate(f"{active}.getAttribute('aria-label')")
    page.keyboard.press("ArrowUp")  # nothing before the first page
    page.keyboard.press("End")
    last = page.evaluate(f"{active}.getAttribute('aria-label')")
    page.keyboard.press("ArrowDown")
    page.locator("#latents-range", has_text=f"21{DASH}40").wait_for()
    page_walk.wait_for_list(page, "latent")
    assert page.evaluate(f"{active}.id") == "latent-list-0"
    page.keyboard.press("ArrowUp")
    page.locator("#latents-range", has_text=f"1{DASH}20").wait_for()
    page_walk.wait_for_list(page, "latent")
    assert page.evaluate(f"{active}.getAttribute('aria-label')") == last
    page.keyboard.press("PageDown")
    page.locator("#latents-range", has_text=f"21{DASH}40").wait_for()
    page_walk.wait_for_list(page, "latent")
    page.keyboard.press("PageUp")
    page.locator("#latents-range", has_text=f"1{DASH}20").wait_for()
    page_walk.wait_for_list(page, "latent")
    assert page.evaluate(f"{active}.getAttribute('aria-label')") == first


def test_every_control_has_a_name(ready: Callable[..., Page]) -> None:
    page = ready()
    choose(page)
    page.get_by_text("More").click()
    unnamed = page.evaluate("""() => [...document.querySelectorAll("input, select, textarea, button, .list")]
      .filter((one) => !one.labels?.length && !one.ariaLabel && !one.getAttribute("aria-labelledby"))
      .filter((one) => !one.matches("button") || !one.textContent.trim()).map((one) => one.id)""")
    assert unnamed == []
    dangling = page.evaluate("""() => ["for", "aria-labelledby", "aria-describedby"]
      .flatMap((name) => [...document.querySelectorAll(`[${name}]`)].map((one) => one.getAttribute(name)))
      .filter((id) => id && !document.getElementById(id))""")
    assert dangling == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
    assert len(ids) == len(set(ids))
