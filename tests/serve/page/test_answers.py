"""A question and its two answers, at one strength and at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import page_walk
import pytest
from fake_api.api import FakeApi
from fake_api.contents import SAE
from page_visits import MINUS, Visits, choose, compared, eventually

from morfi.questions.matching import is_correct

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_click_path(visit: Visits, api: FakeApi) -> None:
    walked = page_walk.walk(visit(), api.url)
    assert re.fullmatch(r"latent \d+, rising, rho 1\.00, score [\d.]+, selected", walked.latent)
    assert walked.n_statistics == 8
    assert walked.question == "Which country is Toulouse in?"
    assert "France" in walked.accepted
    assert (walked.default, walked.steered) == ("Germany", "France")
    assert walked.verdicts == ("✗ wrong", "✓ right")
    assert walked.strength == f"Steered, {MINUS}0.6"
    assert walked.n_marks == 2
    assert walked.applied == "layer 25, 14 tokens changed"
    assert walked.n_strengths == 8  # -0.6 stands in the list already
    first, second, third = compared(api)
    latent = int(walked.latent.split()[1].rstrip(","))
    assert first == {
        "question": walked.question,
        "latents": [{"sae": SAE, "id": latent, "op": "add"}],
        "strengths": [-0.5],
        "positions": "all",
        "max_tokens": 16,
        "stream": True,
    }
    assert second == first | {"strengths": [-0.6]}
    assert third == first | {"strengths": [-1, -0.6, -0.4, -0.25, 0.25, 0.4, 0.6, 1]}


def test_both_answers_grow_together_as_they_stream(ready: Callable[..., Page], api: FakeApi) -> None:
    api.delay_s = 0.05
    page = ready()
    choose(page, question=None)
    page.evaluate("""() => {
      window.seen = [];
      for (const id of ["default-answer", "steered-answer"]) {
        const said = document.querySelector(`#${id} .said`);
        const note = () => window.seen.push([id[0], said.textContent]);
        new MutationObserver(note).observe(said, { childList: true, characterData: true, subtree: true });
      }
    }""")
    page_walk.rows(page, "question").nth(1).click()  # Recife
    page_walk.wait_for_answers(page, "Steered")
    seen = page.evaluate("window.seen")
    for name, whole in (("d", "Spain"), ("s", "Brazil")):
        grown = list(dict.fromkeys(text for which, text in seen if which == name and text))
        assert grown == [whole[:4], whole]
    order = [which for which, text in seen if text]
    assert order.index("s") < len(order) - 1 - order[::-1].index("d")  # neither waits for the other


@pytest.mark.parametrize(
    ("op", "sent", "title"),
    [
        ("ablate", {"op": "ablate"}, "Steered, ablated"),
        ("project", {"op": "project"}, "Steered, projected out"),
        ("clamp", {"op": "clamp", "clamp": 0.5}, "Steered, clamped to +0.5"),
        ("clamp_firing", {"op": "clamp_firing", "clamp": 0.5}, "Steered, where it fires, clamped to +0.5"),
        (
            "clamp_interval",
            {"op": "clamp_interval", "high": 0.5, "low": -0.25},
            "Steered, kept within \u22120.25 to +0.5",
        ),
    ],
)
def test_other_operations(
    ready: Callable[..., Page], api: FakeApi, op: str, sent: dict[str, Any], title: str
) -> None:
    page = ready()
    choose(page)
    page.get_by_text("More").click()
    page.locator("#positions").select_option("generated")
    page.locator("#op").get_by_text(op, exact=True).click()
    assert page.locator("#low").is_visible() == ("low" in sent)
    if "low" in sent:
        page.locator("#low").fill("-0.25")
    if op.startswith("clamp"):
        page.locator("#amount").fill("0.5")
        page.locator("#amount").press("Enter")
    page_walk.wait_for_answers(page, title)
    latent = {"sae": SAE, "id": int(page.locator("#latent-title").inner_text().split()[1])} | sent
    assert eventually(lambda: compared(api)[-1]["latents"] == [latent])
    assert compared(api)[-1]["strengths"] == [0]
    assert compared(api)[-1]["positions"] == "generated"
    assert not page.locator("#strength").is_visible()


def test_a_question_of_ones_own_has_no_verdict(ready: Callable[..., Page], api: FakeApi) -> None:
    page = ready()
    choose(page)
    assert page.locator("#default-answer .verdict").inner_text() == "✗ wrong"
    page.locator("#question").fill("Who am I?")
    page.locator("#question").press("Enter")
    page.locator("#default-answer .said", has_text="town of nowhere").wait_for()
    page_walk.wait_for_answers(page, "Steered")
    assert page.locator("#accepted").inner_text() == ""
    assert page.locator(".answer .verdict").all_inner_texts() == ["", ""]
    assert page.locator("#pair mark").all_inner_texts() == ["town", "nowhere", "city", "somewhere"]


def test_all_strengths_and_one_of_them(ready: Callable[..., Page], visit: Visits) -> None:
    page = ready()
    choose(page)
    page.locator("#strength-number").fill("-2.5")
    page.locator("#strengths").fill("-8; -1, 1")
    page.locator("#strengths").press("Enter")
    page.locator(page_walk.WHOLE).wait_for()
    table = page.locator("#all tbody tr")
    assert [row.split("\t") for row in table.all_inner_texts()] == [
        [f"{MINUS}8", "the the the the the", "✗ wrong"],
        [f"{MINUS}2.5", "France", "✓ right"],
        [f"{MINUS}1", "France", "✓ right"],
        ["+1", "Germany", "✗ wrong"],
    ]
    assert table.nth(1).get_attribute("class") == "now"
    table.nth(0).get_by_role("button").click()
    page_walk.wait_for_answers(page, f"Steered, {MINUS}8")
    assert page.locator("#strength-number").input_value() == "-8"
    assert table.count() == 4  # the table is of this question and latent still
    page_walk.rows(page, "question").nth(2).click()
    page_walk.wait_for_answers(page, "Steered")
    assert not page.locator("#all").is_visible()
    too_many = ", ".join(f"{place / 10}" for place in range(16))  # and the -8 that is chosen
    for text, words in (
        ("1, two", "two"),
        ("99", f"from {MINUS}64 to +64"),
        (too_many, "These are 17 strengths"),
    ):
        page.locator("#strengths").fill(text)
        page.get_by_role("button", name="All strengths").click()
        page.locator("#ask-error", has_text=words).wait_for()


def test_a_newer_question_ends_the_one_before(ready: Callable[..., Page], api: FakeApi) -> None:
    page = ready()
    choose(page, question=None)
    api.delay_s = 1.0
    page_walk.rows(page, "question").nth(0).click()
    page.locator("#default-answer .said", has_text="Germ").wait_for()
    api.delay_s = 0.01
    page_walk.rows(page, "question").nth(1).click()
    page.locator("#default-answer .said", has_text="Spain").wait_for()
    page_walk.wait_for_answers(page, "Steered")
    assert eventually(lambda: api.n_left == 1)
    assert page.locator("#steered-answer .said").inner_text() == "Brazil"
    assert page.locator("#ask-error").inner_text() == ""


def test_stop_ends_the_stream_and_says_so(ready: Callable[..., Page], api: FakeApi) -> None:
    page = ready()
    choose(page, question=None)
    api.delay_s = 1.0
    page_walk.rows(page, "question").nth(0).click()
    page.locator("#default-answer .said", has_text="Germ").wait_for()
    page.get_by_role("button", name="Stop").click()
    assert eventually(lambda: api.n_left == 1)
    assert page.locator("#default-answer .note").inner_text() == "stopped: not the whole answer"
    assert page.locator("#default-answer .verdict").inner_text() == ""
    assert page.locator("#default-answer").get_attribute("aria-busy") == "false"


def test_a_steered_answer_that_does_not_say_what_was_applied(
    ready: Callable[..., Page], api: FakeApi
) -> None:
    api.forgets_applied = True
    page = ready()
    choose(page)
    assert page.locator("#steered-answer .note").inner_text() == "The server did not say what was applied."


def test_a_steering_that_changes_nothing_says_so(ready: Callable[..., Page], api: FakeApi) -> None:
    api.n_tokens = 0
    page = ready()
    choose(page)
    page.locator("#op").get_by_text("ablate").click()
    page_walk.wait_for_answers(page, "Steered, ablated")
    note = page.locator("#steered-answer .note")
    assert note.inner_text() == "layer 25, 0 tokens changed: the latent does not fire here"


def test_where_two_rules_judge_an_answer_differently_both_are_named(
    ready: Callable[..., Page], api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ready()

    def judge(text: str, accepted: Sequence[str], rule: str) -> bool:
        return rule == "answer" or is_correct(text, accepted, rule)

    monkeypatch.setattr("fake_api.comparison.is_correct", judge)
    choose(page)
    verdicts = page.locator(".answer .verdict").all_inner_texts()
    assert verdicts == ["✗ wrong by squad, ✓ right by answer", "✓ right"]
