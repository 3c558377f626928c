"""The report of an experiment as one HTML file: what stands in it, and that it needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import page_walk
import pytest
from run_record import run_record

from morfi.errors import InputError
from morfi.interventions.outcome import steered
from morfi.latents import activity
from morfi.latents.logit_lens import SpokenFor
from morfi.report.document import material, write_as, write_report
from morfi.report.document.answer import answer_of
from morfi.report.document.drawings import Figure, colours_of, drawing
from morfi.report.document.html import Cell, document, table
from morfi.report.document.material import Material
from morfi.report.findings import Experiment
from morfi.report.findings.chain import Chain
from morfi.report.picture import Picture
from morfi.store import Store
from morfi.store.records import SweepAccuracy

VOID = {"meta", "br", "input", "path", "use", "rect"}
TITLES = [
    "What was done",
    "What steering brings back",
    "By relation",
    "Answers that flipped",
    "The latents",
    "Settings, versions and hashes",
    "What it cost",
    "How to repeat it",
]


class Outline(HTMLParser):
    """Reads a document: what is open and never closed, ids, headings, the rows of tables, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.headings: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [one for one in (given.get("id"),) if one]
        self.links += [one for name, one in attrs if one and name in ("href", "src", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [one for name, one in attrs if name == "id" and one]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("th", "td"):
            self.rows[-1][-1] += data
        elif self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data


@pytest.fixture
def steer_run(steerable: tuple[Store, str], steer: Callable[..., str]) -> tuple[Store, str]:
    """A store and a steer run in it, of an engine that latent 0 brings back."""
    return steerable[0], steer()


def test_a_steer_run_is_reported_with_all_that_it_builds_on(
    steer_run: tuple[Store, str], tmp_path: Path
) -> None:
    store, run_id = steer_run
    html = write_report(store, run_id, tmp_path / "r.html").read_text(encoding="utf-8")
    found = Outline(html)
    assert found.open == []
    assert len(set(found.ids)) == len(found.ids)
    assert all(link[1:] in found.ids for link in found.links if link.startswith("#"))
    assert [title for title in TITLES if title not in found.headings] == []
    assert any(heading.startswith("Latent 0 rises") for heading in found.headings)
    outcome = steered(store, store.run(run_id))
    assert outcome is not None
    best = next(one for one in outcome.outcomes if one.direction.latent == 0)
    assert best.reported is not None
    row = next(row for row in found.rows if row[:2] == [best.direction.direction, "latent"])
    assert f"{100 * best.reported.difference:+.1f}" in row
    assert "bands hold 95 % of 20 resamples of the questions" in html
    assert re.search(r"\|S\| &gt;= \d+: \d+ found, [\d.]+ expected by chance", html)
    assert html.count("<polygon") == html.count('class="card"') > 0
    flipped = [row for row in found.rows if "brought back" in row and best.direction.direction in row]
    assert len(flipped) == best.reported.n_gained > 0


def test_the_report_asks_no_server_and_the_same_runs_give_the_same_bytes(
    steer_run: tuple[Store, str], tmp_path: Path
) -> None:
    store, run_id = steer_run
    first = write_report(store, run_id, tmp_path / "a.html").read_bytes()
    folder = tmp_path / "pictures"
    assert write_report(store, run_id, tmp_path / "b.html", folder).read_bytes() == first
    assert {"trends.svg", "trends.png", "steering.svg"} <= {one.name for one in folder.iterdir()}
    addresses = set(re.findall(rb'(?:href|src|url)\s*[=(]\s*["\']?(https?:[^"\')>\s]+)', first))
    assert addresses == set()
    assert str(tmp_path).encode() not in first
    assert len(first) < 3_000_000


def test_the_report_stands_beside_the_database_unless_told_otherwise(
    steerable: tuple[Store, str], tmp_path: Path
) -> None:
    store, find_run = steerable
    path = write_report(store, find_run, None)
    assert path == store.path.parent / f"{find_run}.html"
    found = Outline(path.read_text(encoding="utf-8"))
    assert "What steering brings back" not in found.headings
    assert "The latents" in found.headings
    with pytest.raises(InputError, match="cannot be written"):
        write_report(store, find_run, tmp_path / "no" / "r.html")


def test_the_page_in_markdown_answers_every_claim_by_the_same_numbers(
    steerable: tuple[Store, str], steer: Callable[..., str], tmp_path: Path
) -> None:
    store, run_id = steerable[0], steer(rivals=True, ids=(0, 3))
    page = write_as("md", store, [run_id], tmp_path / "r.md").read_text(encoding="utf-8")
    head = page[: page.index("\n## ")]
    assert head.startswith("# tiny on ")
    assert "**What was asked.**" in head
    assert re.search(r"\*\*What came out.\*\* \S+ answers [\d.]+ % of \d+ ", head)
    assert [page.count(f"\n- ({letter}) ") for letter in "abcde"] == [1] * 5
    found = steered(store, store.run(run_id))
    assert found is not None
    groups = {group.kind: group for group in found.groups}
    assert {"change", "knowledge", "control", "random", "delta_u"} <= set(groups)
    for kind in ("control", "random"):
        margin = groups[kind].margin
        assert margin is not None
        assert f"{100 * margin.difference:+.1f} (" in page
    assert "Llama Scope | +33.4 down, +21.7 up | 69.0 to 76.9 %" in page
    assert f"| steer | {run_id} |" in page
    assert str(tmp_path) not in page
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in page.splitlines() if "**tiny" in line} == {5}
    both = write_as("md", store, [run_id, run_id], tmp_path / "b.md").read_text(encoding="utf-8")
    assert both.startswith("# Experiments on several models\n")
    assert both.count("\n### The claims\n") == 2
    assert write_as("md", store, [run_id], tmp_path / "c.md").read_text(encoding="utf-8") == page
    html = Outline(write_as("html", store, [run_id], tmp_path / "r.html").read_text(encoding="utf-8"))
    assert {
        "By how directions were chosen",
        "What the paper claims, and what this experiment says to it",
    } <= set(html.headings)
    for form, runs, said in (("pdf", [run_id], "none of html, md"), ("html", [run_id] * 2, "2 runs in one")):
        with pytest.raises(InputError, match=said):
            write_as(form, store, runs, None)


def test_a_sweep_is_answered_for_one_number_of_epochs(store: Store) -> None:
    rows = [
        SweepAccuracy(level, epochs, "test Known", 1, 100, right, right / 100, right / 100 - 0.1, 0.9)
        for epochs, of_level in (
            ("1", {0: 30, 100: 31}),
            ("3", {0: 56, 100: 53}),
            ("early-stop", {0: 60, 100: 5}),
        )
        for level, right in of_level.items()
    ]
    run = run_record("sweep", kind="sweep", config={"property": "dose", "unit": "mg"})
    told = SimpleNamespace(sweep_accuracies=lambda _: rows)
    said = answer_of(Material(Experiment(cast("Store", told), Chain(sweep=run), {})))
    assert "Epochs 3: accuracy on test Known questions is 56.0 %" in said
    assert "where dose is 0 mg, and 53.0 %" in said


def test_an_sae_that_explains_too_little_is_spoken_of(steer_run: tuple[Store, str], tmp_path: Path) -> None:
    store, run_id = steer_run
    html = write_report(store, run_id, tmp_path / "r.html").read_text(encoding="utf-8")
    lowest = min(row.explained_variance for row in store.trend_conditions(_find_of(store, run_id)))
    assert f"The SAE explains {lowest:.3f} to" in html
    assert ("its latents say little about this model" in html) is (lowest < 0.5)


def _find_of(store: Store, run_id: str) -> str:
    return str(store.run(run_id).config["latents"])


def test_text_from_outside_stays_text() -> None:
    bad = '<script>alert("x")</script>'
    made = table((bad,), [(bad, Cell(bad, 1.0))], caption=bad)
    drawn = '<svg viewBox="0 0 90 9"><g id="a" style="fill: #440154; stroke: #000000"/><use href="#a"/></svg>'
    picture = cast("Picture", SimpleNamespace(svg=lambda *, narrow: drawn))
    made += drawing(Figure(picture, "one", bad, bad))
    whole = document(bad, bad, [])
    assert bad not in made + whole
    for kind in ("wide", "narrow"):
        assert f'<g id="one-{kind}-a" style="fill: var(--c440154); stroke: currentColor"/>' in made
        assert f'href="#one-{kind}-a"' in made


def test_what_is_not_here_any_more_is_said_and_left_out(
    steerable: tuple[Store, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, find_run = steerable

    def gone(*_: object) -> None:
        raise InputError("gone")

    spoken = SpokenFor((" a<b",), ("\n",))
    monkeypatch.setattr(material, "spoken_for", lambda _, rows: [spoken] * len(rows))
    monkeypatch.setattr(activity, "load_found", gone)
    html = write_report(store, find_run, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "no bands, for the captures or the SAE are no longer where they were" in html
    assert "No bands, firing rates and questions" in html
    assert "<polygon" not in html
    assert "Promotes <code>\u2423a&lt;b</code></p><p>Suppresses <code>\u21b5</code>" in html
    monkeypatch.setattr(material, "load_sae", gone)
    html = write_report(store, find_run, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "The tokens that a latent speaks for are not shown" in html


def test_a_token_of_many_blanks_stays_inside_its_card(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    token = f"<p><code>{60 * chr(0x2423)}</code></p>"
    page.locator("#latents summary").click()
    page.evaluate("token => document.querySelector('.card').insertAdjacentHTML('beforeend', token)", token)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_picture_can_be_told_from_a_light_and_from_a_dark_page() -> None:
    light, dark = colours_of("fill: var(--c440154); stroke: var(--ce5e5e5)").splitlines()
    assert "--c440154: #440154; --ce5e5e5: #e5e5e5;" in light  # the darkest of the scale, and a grid
    assert "--c440154: #440154" not in dark
    assert "--ce5e5e5: #3c3c3c" in dark
    assert "--cfde725: #fde725" not in colours_of("var(--cfde725)").splitlines()[0]
    assert colours_of("nothing") == ""


@pytest.fixture
def page(chromium: str, steer_run: tuple[Store, str], tmp_path: Path) -> Iterator[Any]:
    """The report of a steer run, open in a browser; nothing may fail or be asked for in it."""
    store, run_id = steer_run
    path = write_report(store, run_id, tmp_path / "r.html")
    wrong: list[str] = []
    with page_walk.launched(chromium) as browser:
        opened = browser.new_page()
        opened.on("pageerror", lambda error: wrong.append(str(error)))
        opened.on("console", lambda message: wrong.append(message.text))
        opened.on("request", lambda one: wrong.append(one.url) if one.url.startswith("http") else None)
        opened.goto(path.as_uri())
        yield opened
    assert wrong == []


def test_tables_sort_and_filter_and_the_page_fits_a_phone(page: Any) -> None:
    rows = page.locator("#gains tbody tr")
    gain = "#gains tbody tr td:nth-child(5)"
    page.locator("#gains thead button", has_text="gain on test").click()
    values = [float(text) for text in page.locator(gain).all_inner_texts()]
    assert values == sorted(values)
    head = page.locator("#gains thead th:nth-child(5)")
    assert head.get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")  # the button has the focus
    assert head.get_attribute("aria-sort") == "descending"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert [float(text) for text in page.locator(gain).all_inner_texts()] == sorted(values, reverse=True)
    page.locator("#gains input").fill("random")
    assert rows.filter(visible=True).count() == 1
    assert page.locator("#gains output").inner_text().startswith("1 of ")
    flipped, card = page.locator("#flips tbody tr").first, page.locator("#latents .card").first
    assert not flipped.is_visible()
    page.locator("nav a", has_text="Answers that flipped").click()
    assert flipped.is_visible()
    page.locator("#latents summary").press("Enter")
    assert card.is_visible()
    page.locator("#repeat button", has_text="Copy").last.click()
    assert "[steer]" in page.evaluate("getSelection().toString()")
    page.locator("#repeat output", has_text="cop").wait_for()
    for width, scheme in ((390, "light"), (390, "dark"), (1440, "dark")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#latents summary").press("Enter")
    assert not card.is_visible()
    page.emulate_media(media="print")
    assert card.is_visible()
    assert not page.locator("nav").is_visible()
