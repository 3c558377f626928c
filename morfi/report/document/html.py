"""HTML by small functions: everything that comes from outside goes through `text`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

_SHORT = 24  # letters that stay on one line of a table


@dataclass(frozen=True, slots=True)
class Section:
    """A section: its id in the document, its heading, and its HTML."""

    id: str
    title: str
    body: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table that is shown as `shown` and sorted by `value`."""

    shown: str
    value: float


def last_part(word: str) -> str:
    """The word, of a path its last part alone: where files lie is nobody's business."""
    return Path(word).name if word.startswith(("/", "~/")) else word


def text(plain: object) -> str:
    """Plain text as HTML."""
    return html.escape(str(plain), quote=True)


def paragraph(*sentences: str) -> str:
    """A paragraph of plain sentences."""
    return f"<p>{text(' '.join(sentences))}</p>"


def items(lines: Iterable[str]) -> str:
    """A list of plain lines."""
    return f"<ul>{''.join(f'<li>{text(line)}</li>' for line in lines)}</ul>"


def code(plain: str, *, copied: bool = False) -> str:
    """Plain text to be read, or typed, as it stands; with a button that copies it, where it is to be."""
    kind = ' class="copied" tabindex="0"' if copied else ""
    return f"<pre{kind}><code>{text(plain)}</code></pre>"


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str | Cell]],
    *,
    caption: str,
    sortable: bool = False,
) -> str:
    """A table; the first cell of each row is its heading. A `sortable` one sorts and filters in a browser."""
    heads = "".join(f'<th scope="col"{_long(one)}>{text(one)}</th>' for one in header)
    body = "".join(f"<tr>{''.join(_cells(row))}</tr>" for row in rows)
    kind = ' class="sortable"' if sortable else ""
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{text(caption)}"><table{kind}>'
        f"<caption><span>{text(caption)}</span></caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
        "</div>"
    )


def folded(summary: str, body: str) -> str:
    """HTML that a reader opens by its summary, or by the section's link; paper shows it all."""
    return f'<details class="fold"><summary>{text(summary)}</summary>{body}</details>'


def _long(shown: str) -> str:
    return ' class="long"' if len(shown) > _SHORT else ""


def _cells(row: Sequence[str | Cell]) -> Iterable[str]:
    for place, one in enumerate(row):
        shown = one.shown if isinstance(one, Cell) else one
        value = _long(shown)
        if isinstance(one, Cell):
            value = f' data-value="{one.value!r}" class="number"'
        tag = 'th scope="row"' if place == 0 else "td"
        yield f"<{tag}{value}>{text(shown)}</{tag.split(maxsplit=1)[0]}>"


def document(title: str, lead: str, sections: Sequence[Section], colours: str = "") -> str:
    """The whole file: it asks no server for anything. `colours` is the style sheet of its pictures."""
    own = resources.files("morfi.report.document")
    style, script = ((own / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    links = "".join(f'<li><a href="#{one.id}">{text(one.title)}</a></li>' for one in sections)
    body = "".join(
        f'<section id="{one.id}" aria-labelledby="{one.id}-title">'
        f'<h2 id="{one.id}-title">{text(one.title)}</h2>{one.body}</section>'
        for one in sections
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'; img-src data:\">"
        f'<style>{style}{colours}</style></head><body><a class="skip" href="#main">To the answer</a>'
        f'<header><h1>{text(title)}</h1><p class="lead">{text(lead)}</p></header>'
        f'<nav aria-label="Sections"><ol>{links}</ol></nav><main id="main">{body}</main>'
        f"<script>{script}</script></body></html>\n"
    )
