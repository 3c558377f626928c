"""The page of `morfi serve`, driven in headless Chromium against a fake of its HTTP interface."""

from __future__ import annotations

import importlib.util
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


def _beside(name: str) -> Any:
    """The module `name` of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(
        f"morfi_tests_{name}", Path(__file__).with_name(f"{name}.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fake_api = _beside("fake_api")
page_walk = _beside("page_walk")

MINUS, DASH, TIMES = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"
SCRIPT = """<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'"&amp;"""


@dataclass
class Visits:
    """Opens pages in contexts of their own, and remembers all that went wrong in them."""

    browser: Browser
    origin: str
    may_fail: bool = False  # a request that fails on purpose is no error of the page
    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    contexts: list[Any] = field(default_factory=list)

    def __call__(self, *, width: int = 1440, height: int = 900, **options: Any) -> Page:
        context = self.browser.new_context(viewport={"width": width, "height": height}, **options)
        self.contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._note)
        page.on("request", lambda request: self._check(request.url))
        return page

    def _note(self, message: Any) -> None:
        is_response = message.text.startswith("Failed to load resource")
        if message.type in ("error", "warning") and not (is_response and self.may_fail):
            self.errors.append(message.text)

    def _check(self, url: str) -> None:
        if not url.startswith((self.origin, "data:")):
            self.foreign.append(url)


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    with page_walk.launched(chromium) as browser:
        yield browser


@pytest.fixture
def api() -> Iterator[Any]:
    with fake_api.serving(fake_api.FakeApi()) as api:
        yield api


@pytest.fixture
def visit(browser: Browser, api: Any) -> Iterator[Visits]:
    """Opens pages; none of them may have logged an error or asked anyone but the server."""
    visits = Visits(browser, api.url)
    yield visits
    for context in visits.contexts:
        context.close()
    assert visits.errors == []
    assert visits.foreign == []


@pytest.fixture
def ready(visit: Visits, api: Any) -> Callable[..., Page]:
    """Opens the page and waits for both lists."""

    def open_(fragment: str = "", **options: Any) -> Page:
        page = visit(**options)
        page.goto(api.url + fragment)
        page_walk.wait_for_list(page, "latent")
        page_walk.wait_for_list(page, "question")
        return page

    return open_


def choose(page: Page, latent: int = 0, question: int | None = 0) -> None:
    """Chooses by place a latent, and a question whose answers are waited for."""
    page_walk.rows(page, "latent").nth(latent).click()
    page.locator("#statistics dt").first.wait_for()
    if question is not None:
        page_walk.rows(page, "question").nth(question).click()
        page_walk.wait_for_answers(page, "Steered")


def eventually(holds: Callable[[], object]) -> bool:
    """Whether `holds` comes true within twenty seconds."""
    until = time.monotonic() + 20
    while not holds() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(holds())


def compared(api: Any) -> list[Any]:
    """The bodies of the comparisons that were asked for."""
    return [body for _, path, body in api.requests if path == "/v1/morfi/compare"]


# What the file itself must be


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


# The way through


def test_click_path(visit: Visits, api: Any) -> None:
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
        "latents": [{"id": latent, "op": "add"}],
        "strengths": [-0.5],
        "positions": "all",
        "max_tokens": 16,
        "stream": True,
    }
    assert second == first | {"strengths": [-0.6]}
    assert third == first | {"strengths": [-1, -0.6, -0.4, -0.25, 0.25, 0.4, 0.6, 1]}


def test_both_answers_grow_together_as_they_stream(ready: Callable[..., Page], api: Any) -> None:
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


@pytest.mark.parametrize(("label", "direction"), [("Falling", "falling"), ("Rising", "rising")])
def test_the_list_is_filtered_sorted_and_paged(
    ready: Callable[..., Page], api: Any, label: str, direction: str
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


def test_a_latent_shows_its_trend_statistics_and_neighbours(ready: Callable[..., Page], api: Any) -> None:
    page = ready()
    choose(page, question=None)
    latent = int(page.locator("#latent-title").inner_text().split()[1])
    row = next(row for row in api.latents if row["id"] == latent)
    chart = page.locator("#trend svg")
    assert chart.locator("circle").count() == len(fake_api.LEVELS)
    heights = chart.locator("circle").evaluate_all("all => all.map((one) => Number(one.getAttribute('cy')))")
    assert sorted(heights, reverse=row["direction"] == "rising") == heights  # y runs downwards
    words = chart.get_attribute("aria-label") or ""
    assert all(f"{level} %" in words for level in fake_api.LEVELS)
    assert {"mean activation", "% Unknown in training", "served"} <= set(
        chart.locator("text").all_inner_texts()
    ) | set(chart.locator("text").all_text_contents())
    told = page.locator("#statistics").inner_text()
    assert f"{row['score']:.2f}" in told
    assert f"{100 * row['stability']:.1f} %" in told
    assert f"4.0 {TIMES} 10⁻⁴" in told
    page.locator("#neighbours button").nth(3).click()
    page.locator(f"#latent-title:not(:text-is('Latent {latent}'))").wait_for()
    assert page.evaluate("document.activeElement.id") == "latent-title"


def test_a_latent_by_number_and_one_that_there_is_not(
    ready: Callable[..., Page], visit: Visits, api: Any
) -> None:
    visit.may_fail = True
    page = ready()
    wanted = api.latents[250]["id"]
    page.locator("#goto-id").fill(str(wanted))
    page.locator("#goto-id").press("Enter")
    page.locator("#statistics dt").first.wait_for()
    assert "no trend" in page.locator("#latent-kind").inner_text()
    assert "not resampled" in page.locator("#statistics").inner_text()
    missing = min(set(range(fake_api.D_SAE)) - {row["id"] for row in api.latents})
    page.locator("#goto-id").fill(str(missing))
    page.locator("#goto-id").press("Enter")
    page.locator("#latent-error", has_text=f"latent {missing} is out of range").wait_for()
    assert not page.locator("#statistics").is_visible()


def test_without_selected_latents_all_are_shown(ready: Callable[..., Page], api: Any) -> None:
    api.latents = [row | {"selected": False} for row in api.latents]
    page = ready()
    assert not page.locator("#selected").is_checked()
    assert page_walk.rows(page, "latent").count() == 20


@pytest.mark.parametrize(
    ("op", "sent", "title"),
    [
        ("ablate", {"op": "ablate"}, "Steered, ablated"),
        ("project", {"op": "project"}, "Steered, projected out"),
        ("clamp", {"op": "clamp", "clamp": 0.5}, "Steered, clamped to +0.5"),
    ],
)
def test_other_operations(
    ready: Callable[..., Page], api: Any, op: str, sent: dict[str, Any], title: str
) -> None:
    page = ready()
    choose(page)
    page.get_by_text("More").click()
    page.locator("#positions").select_option("generated")
    page.locator("#op").get_by_text(op).click()
    if op == "clamp":
        page.locator("#amount").fill("0.5")
        page.locator("#amount").press("Enter")
    page_walk.wait_for_answers(page, title)
    latent = {"id": int(page.locator("#latent-title").inner_text().split()[1])} | sent
    assert eventually(lambda: compared(api)[-1]["latents"] == [latent])
    assert compared(api)[-1]["strengths"] == [0]
    assert compared(api)[-1]["positions"] == "generated"
    assert not page.locator("#strength").is_visible()


def test_a_question_of_ones_own_has_no_verdict(ready: Callable[..., Page], api: Any) -> None:
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


def test_a_newer_question_ends_the_one_before(ready: Callable[..., Page], api: Any) -> None:
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


def test_stop_ends_the_stream_and_says_so(ready: Callable[..., Page], api: Any) -> None:
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


# Who may, and what goes wrong


def test_a_key_is_asked_for_and_kept_in_memory_only(visit: Visits, api: Any) -> None:
    visit.may_fail = True
    api.user_key, api.admin_key = "user-key-1", "admin-key-1"
    page = visit()
    page.goto(api.url)
    dialog = page.locator("#key-dialog")
    dialog.wait_for()
    assert page.evaluate("document.activeElement.id") == "key"
    assert not page.locator("#key-error").is_visible()
    page_walk.give_key(page, "with a blank")
    page.locator("#key-error", has_text="without blanks").wait_for()
    page_walk.give_key(page, "wrong")
    page.locator("#key-error", has_text="that key is not known here").wait_for()
    page_walk.give_key(page, "user-key-1")
    page_walk.wait_for_list(page, "question")
    choose(page)
    assert not dialog.is_visible()
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    assert "key" not in page.evaluate("location.href")
    assert page.locator("#key").input_value() == ""
    assert set(api.keys_seen) == {"", "wrong", "user-key-1"}


def test_without_a_key_the_page_says_what_it_needs(visit: Visits, api: Any) -> None:
    visit.may_fail = True
    api.user_key = "user-key-1"
    page = visit()
    page.goto(api.url)
    page.locator("#key-dialog").wait_for()
    page.keyboard.press("Escape")
    page.locator("#header-error", has_text="asks for an API key").wait_for()
    page.get_by_role("button", name="Try again").click()
    page_walk.give_key(page, "user-key-1")
    page_walk.wait_for_list(page, "question")
    assert page.locator("#header-error").inner_text() == ""


def test_loading_a_checkpoint_asks_for_the_admin_key_only_then(visit: Visits, api: Any) -> None:
    visit.may_fail = True
    api.user_key, api.admin_key = "user-key-1", "admin-key-1"
    page = visit()
    page.goto(api.url)
    page_walk.give_key(page, "user-key-1")
    page_walk.wait_for_list(page, "question")
    choose(page)
    page.locator("#checkpoint").select_option("level-0-seed-0-epoch-10")
    page.get_by_role("button", name="Load").click()
    page.locator("#key-title", has_text="Admin key").wait_for()
    page_walk.give_key(page, "admin-key-1")
    page.locator("#load-status", has_text="Loaded in").wait_for()
    assert api.served == "level-0-seed-0-epoch-10"
    page.locator("#question-list", has_text="lost no question").wait_for()
    page.locator("#default-answer .said", has_text="France").wait_for()  # asked again, of the new one
    assert page.get_by_role("button", name="Load").is_disabled()
    page.locator("#checkpoint").select_option("level-100-seed-0-epoch-10")
    page.get_by_role("button", name="Load").click()
    page_walk.wait_for_list(page, "question")
    assert api.served == "level-100-seed-0-epoch-10"  # the key was remembered


def test_a_load_that_fails_says_why(ready: Callable[..., Page], visit: Visits, api: Any) -> None:
    visit.may_fail = True
    page = ready()
    path = "/v1/morfi/checkpoints/level-0-seed-0-epoch-10/load"
    api.failures[path] = fake_api.Refused(
        500, "the weights of M_0 are not as they were", "InternalServerError"
    )
    page.locator("#checkpoint").select_option("level-0-seed-0-epoch-10")
    page.get_by_role("button", name="Load").click()
    page.locator("#header-error", has_text="not as they were").wait_for()
    assert page.locator("#load-status").inner_text() == ""
    assert page.get_by_role("button", name="Load").is_enabled()


def test_a_server_that_loads_nothing(ready: Callable[..., Page], api: Any) -> None:
    api.can_load = False
    page = ready()
    page.locator("#checkpoint").select_option("base")
    assert page.get_by_role("button", name="Load").is_disabled()


def test_without_a_sweep_the_questions_say_so_and_the_rest_works(visit: Visits, api: Any) -> None:
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
    assert page_walk.rows(page, "question").count() == 10


def test_an_error_stands_where_it_happened_and_can_be_tried_again(
    ready: Callable[..., Page], visit: Visits, api: Any
) -> None:
    visit.may_fail = True
    page = ready()
    choose(page, question=None)
    busy = fake_api.Refused(503, "a checkpoint is being loaded", "ServiceUnavailable", Retry_After="3")
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
    ready: Callable[..., Page], visit: Visits, api: Any, ends: str, words: str
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


def test_a_steered_answer_that_does_not_say_what_was_applied(ready: Callable[..., Page], api: Any) -> None:
    api.forgets_applied = True
    page = ready()
    choose(page)
    assert page.locator("#steered-answer .note").inner_text() == "The server did not say what was applied."


OTHER = "level-0-seed-0-epoch-10"
OTHER_SHOWN = "M_0 · 10 epochs · 95.0 % · served"


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
    ready: Callable[..., Page], api: Any, does: str
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
    assert api.requests.count(("GET", f"/v1/morfi/latents/{latent}", None)) == 2  # what it fires on, as well


def test_a_table_that_is_asked_of_the_new_checkpoint_stays(ready: Callable[..., Page], api: Any) -> None:
    page = ready()
    choose(page)
    api.served = OTHER
    page.get_by_role("button", name="All strengths").click()
    page.locator("#checkpoint option:checked", has_text=OTHER_SHOWN).wait_for(state="attached")
    page.locator(page_walk.WHOLE).wait_for()
    assert page.locator("#all tbody tr .said").all_inner_texts()[3:5] == ["France"] * 2
    assert page.locator("#all").is_visible()


def test_answers_in_the_way_of_a_load_are_ended_on_request(
    ready: Callable[..., Page], visit: Visits, api: Any
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


def test_a_steering_that_changes_nothing_says_so(ready: Callable[..., Page], api: Any) -> None:
    api.n_tokens = 0
    page = ready()
    choose(page)
    page.locator("#op").get_by_text("ablate").click()
    page_walk.wait_for_answers(page, "Steered, ablated")
    note = page.locator("#steered-answer .note")
    assert note.inner_text() == "layer 25, 0 tokens changed: the latent does not fire here"


@pytest.mark.parametrize(("fdr", "is_warned"), [(0.04, False), (1.0, True)])
def test_the_runs_false_discovery_rate_stands_above_its_latents(
    ready: Callable[..., Page], api: Any, fdr: float, *, is_warned: bool
) -> None:
    api.fdr = fdr
    page = ready()
    words = page.locator("#chance").inner_text()
    assert f"False discovery rate {fdr:.2f} for the 48 latents with |S| ≥ 21" in words
    assert ("Chance alone gives about as many" in words) is is_warned
    choose(page, question=None)
    assert "False discovery rate" in page.locator("#statistics").inner_text()


def test_where_two_rules_judge_an_answer_differently_both_are_named(
    ready: Callable[..., Page], api: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ready()
    judged = fake_api.is_correct
    monkeypatch.setattr(
        fake_api, "is_correct", lambda text, accepted, rule: rule == "answer" or judged(text, accepted, rule)
    )
    choose(page)
    verdicts = page.locator(".answer .verdict").all_inner_texts()
    assert verdicts == ["✗ wrong by squad, ✓ right by answer", "✓ right"]


def test_a_server_that_is_gone(ready: Callable[..., Page], visit: Visits) -> None:
    visit.may_fail = True
    page = ready()
    page.context.set_offline(True)
    page_walk.rows(page, "latent").first.click()
    page.locator("#latent-error", has_text="The server cannot be reached.").wait_for()


def test_text_from_the_server_and_the_address_is_never_markup(visit: Visits, api: Any) -> None:
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


# Views that are shared


def test_the_address_opens_the_same_view(ready: Callable[..., Page], api: Any) -> None:
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
    ready: Callable[..., Page], api: Any
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


# By keyboard, on a phone, in the dark

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


def test_everything_by_keyboard_alone(ready: Callable[..., Page], api: Any) -> None:
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


def test_the_edges_of_a_list_turn_its_pages(ready: Callable[..., Page], api: Any) -> None:
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
def test_a_phone_never_scrolls_sideways(visit: Visits, api: Any, long: str) -> None:
    api.hostile = long
    page = visit(width=360, height=740, is_mobile=True, has_touch=True)
    page_walk.walk(page, api.url)
    page.get_by_text("More").click()
    assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]
    assert page.evaluate(WITHIN) == []
    boxes = [box_of(page, f"#{name}-answer") for name in ("default", "steered")]
    assert boxes[0]["y"] == boxes[1]["y"]  # beside each other here as well


def test_on_a_phone_the_answers_to_a_tapped_question_are_in_sight(visit: Visits, api: Any) -> None:
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
def test_on_a_phone_half_the_slider_is_for_strengths_up_to_1(visit: Visits, api: Any, limit: float) -> None:
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
    ready: Callable[..., Page], api: Any, width: int
) -> None:
    page = ready(width=width)
    choose(page, question=None)
    for level in fake_api.LEVELS:
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
def test_no_width_scrolls_sideways(visit: Visits, api: Any, width: int) -> None:
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


def test_nothing_moves_for_those_who_want_it_still(ready: Callable[..., Page], api: Any) -> None:
    api.delay_s = 0.2
    animation = "getComputedStyle(document.querySelector('#default-answer .said'), '::after').animationName"
    for motion, name in (("reduce", "none"), ("no-preference", "blink")):
        page = ready(reduced_motion=motion)
        choose(page, question=None)
        page_walk.rows(page, "question").first.click()
        page.locator('#default-answer[aria-busy="true"]').wait_for()
        assert page.evaluate(animation) == name


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


# The page's own small functions


@pytest.fixture(scope="module")
def blank(browser: Browser) -> Iterator[Page]:
    """The page with no server behind it, for its functions alone."""
    with fake_api.serving(fake_api.FakeApi()) as api:
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
def test_the_slider_reaches_every_strength(ready: Callable[..., Page], api: Any, limit: float) -> None:
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


def test_means_that_are_not_known_leave_gaps(ready: Callable[..., Page], api: Any) -> None:
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
