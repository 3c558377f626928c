"""The page on a phone, on any width, in light and dark, and at rest."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import page_walk
import pytest
from fake_api.api import FakeApi
from fake_api.contents import LEVELS
from page_visits import Visits, choose

if TYPE_CHECKING:
    from playwright.sync_api import Page

WITHIN = """() => [...document.querySelectorAll("body *")].filter((element) => {
  const apart = ".unseen, .skip, svg, option, .segments input";
  if (!element.checkVisibility() || element.closest(apart)) return false;
  const box = element.getBoundingClientRect();
  return box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map((element) => `${element.tagName} ${element.id} ${element.className}`)"""


def box_of(page: Any, place: str) -> dict[str, float]:
    """Where an element stands: x, y, width and height."""
    box: dict[str, float] | None = page.locator(place).bounding_box()
    assert box is not None
    return box


@pytest.mark.parametrize("long", ["", "W" * 300])
def test_a_phone_never_scrolls_sideways(visit: Visits, api: FakeApi, long: str) -> None:
    api.hostile = long
    page = visit(width=360, height=740, is_mobile=True, has_touch=True)
    page_walk.walk(page, api.url)
    page.get_by_text("More").click()
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    assert page.evaluate(WITHIN) == []
    boxes = [box_of(page, f"#{name}-answer") for name in ("default", "steered")]
    assert boxes[0]["y"] == boxes[1]["y"]  # beside each other here as well


def test_on_a_phone_the_answers_to_a_tapped_question_are_in_sight(visit: Visits, api: FakeApi) -> None:
    page = visit(width=360, height=740, is_mobile=True, has_touch=True)
    page.goto(api.url)
    page_walk.wait_for_list(page, "latent")
    page_walk.wait_for_list(page, "question")
    page_walk.rows(page, "latent").first.tap()
    page.locator("#statistics dt").first.wait_for()
    page_walk.rows(page, "question").first.tap()
    page_walk.wait_for_answers(page, "Steered")
    box = box_of(page, "#pair")
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= 740


@pytest.mark.parametrize("limit", [8, 64])
def test_on_a_phone_half_the_slider_is_for_strengths_up_to_1(
    visit: Visits, api: FakeApi, limit: float
) -> None:
    api.max_alpha = limit
    page = visit(width=360, height=740, is_mobile=True, has_touch=True)
    page.goto(api.url)
    page_walk.wait_for_list(page, "latent")
    width = box_of(page, "#strength")["width"]
    share = page.evaluate("(placeOf(1) - placeOf(-1)) / 200")
    assert share == 0.5
    assert share * width >= 80
    labels = page.locator("#ends span").evaluate_all(
        "all => all.map((one) => one.getBoundingClientRect().toJSON())"
    )
    labels.sort(key=lambda box: box["left"])
    assert all(a["right"] < b["left"] for a, b in pairwise(labels))


@pytest.mark.parametrize("width", [360, 1440])
def test_words_of_the_chart_do_not_lie_on_each_other(
    ready: Callable[..., Page], api: FakeApi, width: int
) -> None:
    page = ready(width=width)
    choose(page, question=None)
    for level in LEVELS:
        checkpoint = f"level-{level}-seed-0-epoch-10"
        page.evaluate("id => { state.capabilities.checkpoint = id; drawTrend(); }", checkpoint)
        texts = page.locator("#trend text")
        boxes = texts.evaluate_all("all => all.map((one) => one.getBoundingClientRect().toJSON())")
        overlapping = [
            (a, b)
            for place, a in enumerate(boxes)
            for b in boxes[:place]
            if a["left"] < b["right"]
            and b["left"] < a["right"]
            and a["top"] < b["bottom"]
            and b["top"] < a["bottom"]
        ]
        assert overlapping == []
        assert "served" in texts.all_text_contents()


@pytest.mark.parametrize("width", [768, 1024, 1216, 1920])
def test_no_width_scrolls_sideways(visit: Visits, api: FakeApi, width: int) -> None:
    page = visit(width=width, height=800)
    page_walk.walk(page, api.url)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(WITHIN) == []


CONTRASTS = """() => {
  const style = getComputedStyle(document.documentElement);
  const rgb = (name) => {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = style.getPropertyValue(name);
    const found = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number);
    probe.remove();
    return found;
  };
  const light = (name) => {
    const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = rgb(name).map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
  const pairs = [["--ink", "--mark"], ["--on-accent", "--accent"]].map(([a, b]) => [a, b, contrast(a, b)]);
  for (const ink of ["--ink", "--soft", "--rise", "--fall", "--flat", "--right", "--wrong", "--accent"])
    for (const paper of ["--paper", "--raised", "--chosen"]) pairs.push([ink, paper, contrast(ink, paper)]);
  return { paper: light("--paper"), seen: style.backgroundColor, pairs };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(ready: Callable[..., Page], scheme: str) -> None:
    page = ready(color_scheme=scheme)
    found = page.evaluate(CONTRASTS)
    assert (found["paper"] > 0.5) is (scheme == "light")
    assert found["seen"] != "rgba(0, 0, 0, 0)"
    too_weak = [(ink, paper, round(ratio, 2)) for ink, paper, ratio in found["pairs"] if ratio < 4.5]
    assert too_weak == []


def test_nothing_moves_for_those_who_want_it_still(ready: Callable[..., Page], api: FakeApi) -> None:
    api.delay_s = 0.2
    animation = "getComputedStyle(document.querySelector('#default-answer .said'), '::after').animationName"
    for motion, name in (("reduce", "none"), ("no-preference", "blink")):
        page = ready(reduced_motion=motion)
        choose(page, question=None)
        page_walk.rows(page, "question").first.click()
        page.locator('#default-answer[aria-busy="true"]').wait_for()
        assert page.evaluate(animation) == name
