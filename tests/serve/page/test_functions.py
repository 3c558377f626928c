"""The page's own small functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from fake_api.api import FakeApi
from fake_api.serving import serving
from hypothesis import given, settings
from hypothesis import strategies as st
from page_visits import MINUS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def blank(browser: Browser) -> Iterator[Page]:
    """The page with no server behind it, for its functions alone."""
    with serving(FakeApi()) as api:
        page = browser.new_page()
        page.goto(api.url)
        yield page
        page.close()


@pytest.mark.parametrize(
    ("text", "strengths"),
    [
        ("-1, 0.5, 1", ["-1", "0.5", "1"]),
        ("-1,0.5,1", ["-1", "0.5", "1"]),
        ("-1 0.5\t1", ["-1", "0.5", "1"]),
        ("0,5; 1", ["0.5", "1"]),
        ("-0,25; 0,25;1", ["-0.25", "0.25", "1"]),
        (f"{MINUS}1; 0.5", ["-1", "0.5"]),
        ("1, 2", ["1", "2"]),
        ("1,2,3", ["1", "2", "3"]),
        ("1,-2", ["1", "-2"]),
        ("", []),
        ("0,5", None),
        ("0,5 1", None),
        ("-1, 0,5, 1", None),
    ],
)
def test_strengths_are_read_as_people_write_them(blank: Page, text: str, strengths: list[str] | None) -> None:
    script = "text => { try { return listed(text); } catch (error) { return error.message; } }"
    found = blank.evaluate(script, text)
    if strengths is None:
        assert "can be one number or two" in found
    else:
        assert found == strengths


@pytest.mark.parametrize(
    ("text", "beside", "marks"),
    [
        ("Paris", "Paris", []),
        ("Paris", "Lyon", ["Paris"]),
        ("the old city of Bath", "the city of York", ["old", "Bath"]),
        ("a b c d", "a x y d", ["b c"]),
        ("", "anything", []),
        ("東京 は", "東京", ["は"]),
    ],
)
def test_words_that_differ_are_marked(blank: Page, text: str, beside: str, marks: list[str]) -> None:
    script = "([text, beside]) => { const p = document.createElement('p'); p.append(...marked(text, beside));"
    script += " return [p.textContent, [...p.querySelectorAll('mark')].map((one) => one.textContent)]; }"
    assert blank.evaluate(script, [text, beside]) == [text, marks]


@pytest.mark.parametrize("limit", [1, 8, 64])
def test_the_slider_reaches_every_strength(ready: Callable[..., Page], api: FakeApi, limit: float) -> None:
    api.max_alpha = limit
    page = ready()
    places = list(range(-100, 101))
    strengths = page.evaluate("places => places.map(strengthAt)", places)
    assert (strengths[0], strengths[100], strengths[200]) == (-limit, 0, limit)
    assert sorted(strengths) == strengths
    assert strengths == [-one for one in reversed(strengths)]
    back = page.evaluate("strengths => strengths.map((one) => strengthAt(placeOf(one)))", strengths)
    assert back == strengths
    assert max(b - a for a, b in pairwise(strengths) if abs(b) <= 4) < 0.55


def test_replicates_of_a_level_are_one_point_of_the_line(blank: Page) -> None:
    points = blank.evaluate("byLevel([3, 1, 5, 7], [100, 0, 0, 100])")
    assert points == [{"level": 0, "mean": 3}, {"level": 100, "mean": 5}]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.floats(-1e6, 1e6), st.floats(0, 1e6))
def test_ticks_cover_the_values(blank: Page, low: float, spread: float) -> None:
    high = low + spread
    ticks = blank.evaluate("([low, high]) => ticks(low, high)", [low, high])
    assert 2 <= len(ticks) <= 8
    assert all(a < b for a, b in pairwise(ticks))
    slack = 1e-6 * max(abs(low), abs(high), 1e-300)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= high - slack
