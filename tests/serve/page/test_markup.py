"""The page names nothing outside itself, and makes no markup of text."""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING

import page_walk
from fake_api.api import FakeApi
from page_visits import Visits, choose

if TYPE_CHECKING:
    pass

SCRIPT = """<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'"&amp;"""


def source() -> str:
    return resources.files("morfi.serve.http").joinpath("page.html").read_text(encoding="utf-8")


def test_the_page_names_nothing_outside_itself() -> None:
    outside = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", source()))
    assert outside == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\bsrc\s*=|@import|\burl\(", source())


def test_the_page_makes_no_markup_from_text() -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", source()
    )


def test_text_from_the_server_and_the_address_is_never_markup(visit: Visits, api: FakeApi) -> None:
    visit.may_fail = True
    api.hostile = SCRIPT
    page = visit()
    page.goto(api.url)
    page_walk.wait_for_list(page, "latent")
    page_walk.wait_for_list(page, "question")
    choose(page)
    page.get_by_role("button", name="All strengths").click()
    page.locator(page_walk.WHOLE).wait_for()
    page.locator("#goto-id").fill("3")
    page.locator("#goto-id").press("Enter")
    page.locator("#latent-error", has_text="<img src=x").wait_for()
    for place in (
        "#about",
        "#checkpoint",
        "#question-list",
        "#default-answer .said",
        "#all",
        "#latent-error",
    ):
        assert "<script>window.hacked=1</script>" in (page.locator(place).text_content() or "")
    page.goto(api.url + "#latent=5&q=%3Cimg%20src=x%20onerror=window.hacked=1%3E&a=%3Cb%20id=x%3E&op=%3Cb%3E")
    page.reload()
    page.locator("#latent-error", has_text="<img src=x").wait_for()
    assert page.evaluate("window.hacked") is None
    assert page.locator("img, #x").count() == 0
    assert page.locator("script").count() == 1
