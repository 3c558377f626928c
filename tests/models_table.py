"""The table in docs/models.md: what each architecture can do, as tests/serve/test_architectures.py found out.

`python tests/models_table.py` runs those tests, all of them, and writes what they found into the table.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from architectures import ARCHITECTURES

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "models.md"
FOUND = "MORFI_MODELS_FOUND"  # names a file in the environment that takes what the tests find
COLUMNS = ("eval", "steer", "capture", "swap", "train")
_HEAD = "| architecture | model type | " + " | ".join(COLUMNS) + " |"
Table = dict[str, dict[str, str]]


def read() -> Table:
    """The cells of the committed table, by architecture and column, notes in place of their numbers."""
    text = DOCUMENT.read_text()
    notes = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    found: Table = {}
    for line in text.split(_HEAD, 1)[1].splitlines()[2:]:
        if not line.startswith("|"):
            break
        name, _, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        found[name.strip("`")] = {
            column: _with_note(cell, notes) for column, cell in zip(COLUMNS, cells, strict=True)
        }
    return found


def _with_note(cell: str, notes: Mapping[str, str]) -> str:
    word, _, number = cell.partition(" ")
    if not number:
        return cell
    note = notes[number.strip("()")]
    return note if word == "no" else f"{word}: {note}"


def written(table: Table) -> str:
    """The table and its notes, as docs/models.md has them."""
    notes: list[str] = []
    lines = [_HEAD, "|" + "---|" * (2 + len(COLUMNS))]
    for name, cells in table.items():
        shown = [_shown(cells[column], notes) for column in COLUMNS]
        lines.append(f"| `{name}` | `{ARCHITECTURES[name][0]}` | {' | '.join(shown)} |")
    return "\n".join([*lines, "", *(f"{number}. {note}" for number, note in enumerate(notes, 1))])


def _shown(cell: str, notes: list[str]) -> str:
    word, colon, note = cell.partition(": ")
    if word != "adapters":
        word, colon, note = ("no", ": ", cell) if cell != "yes" else (cell, "", "")
    if not colon:
        return word
    if note not in notes:
        notes.append(note)
    return f"{word} ({notes.index(note) + 1})"


def main() -> None:
    """Finds out and writes; options go to pytest."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.jsonl"
        test = str(ROOT / "tests" / "serve" / "test_architectures.py")
        command = [sys.executable, "-P", "-m", "pytest", "-m", "", "-q", test, *sys.argv[1:]]
        subprocess.run(command, env=os.environ | {FOUND: str(path)}, cwd=ROOT, check=True)
        table: Table = {}
        for line in path.read_text().splitlines():
            name, column, cell = json.loads(line)
            table.setdefault(name, {})[column] = cell
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(_HEAD)
    after = rest.partition("\n## ")[2]
    DOCUMENT.write_text(f"{before}{written(table)}\n" + (f"\n## {after}" if after else ""))


if __name__ == "__main__":
    main()
