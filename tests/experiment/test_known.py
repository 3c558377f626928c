"""What is known of stages without making them ready, and when it is known no more."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from morfi.cache import Cache
from morfi.checkpoints import resolve
from morfi.conditions.file import open_series
from morfi.errors import InputError
from morfi.experiment.known import Known
from morfi.experiment.stages import STAGES
from morfi.files import noting_sources, read_once, reading_once
from morfi.latents.sae import load_sae
from morfi.questions import load_questions
from morfi.questions.sets import SPLITS
from morfi.questions.templates import read_template
from morfi.questions.texts import load_texts

SPLIT, SAE = STAGES[0], STAGES[5]


class FakeStore:
    """A store of one run."""

    def __init__(self) -> None:
        self.status, self.fingerprint = "done", "abc"

    def run(self, run_id: str) -> Any:
        return SimpleNamespace(run_id=run_id, fingerprint=self.fingerprint)

    def latest_run(self, fingerprint: str) -> Any:
        return self.run("split-1") if fingerprint == self.fingerprint else None

    def summary(self, run_id: str) -> Any:
        return SimpleNamespace(run_id=run_id, status=self.status)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def known(isolated_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: FakeStore) -> Known:
    monkeypatch.chdir(tmp_path)
    return Known(store)  # type: ignore[arg-type]


def test_a_stage_is_known_until_its_options_its_sources_or_its_run_change(
    known: Known, store: FakeStore, tmp_path: Path
) -> None:
    data, folder = tmp_path / "data.jsonl", tmp_path / "model"
    data.write_text("a")
    folder.mkdir()
    given = {"data": "data.jsonl", "relations": ("P17",)}
    assert known.result(SPLIT, given) is None

    def learn() -> None:
        known.led(SPLIT, given, {data, folder}).keep("split-1")
        assert known.result(SPLIT, given) == "split-1"

    learn()
    assert known.result(SPLIT, {**given, "limit": 3}) is None
    data.write_text("ab")
    assert known.result(SPLIT, given) is None
    learn()
    (folder / "config.json").write_text("{}")
    assert known.result(SPLIT, given) is None
    learn()
    data.unlink()
    assert known.result(SPLIT, given) is None
    learn()
    store.status = "interrupted"
    assert known.result(SPLIT, given) is None
    store.status, store.fingerprint = "done", "another"
    assert known.result(SPLIT, given) is None


def test_a_file_that_changes_while_the_stage_works_is_looked_at_again(known: Known, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("a")
    led = known.led(SPLIT, {}, {data})
    data.write_text("ab")
    led.keep("split-1")
    assert known.result(SPLIT, {}) is None


@pytest.mark.parametrize("option", ["endpoint", "server"])
def test_a_stage_that_asks_a_server_is_always_looked_at_again(known: Known, option: str) -> None:
    given = {option: "http://localhost:8000/v1"}
    known.led(SPLIT, given, set()).keep("split-1")
    assert known.result(SPLIT, given) is None


def test_an_sae_is_known_while_the_cache_holds_it(known: Known, isolated_cache: Path) -> None:
    folder = Cache().folder_of("sae-1")
    known.led(SAE, {}, set()).keep(str(folder))
    assert known.result(SAE, {}) is None
    folder.mkdir(parents=True)
    named = '"kind": "sae", "name": "x", "sources": {}, "created": "", "files": {}'
    (folder / "entry.json").write_text(f"{{{named}}}")
    assert known.result(SAE, {}) == str(folder)


READERS: dict[str, Callable[[str], object]] = {
    "questions": load_questions,
    "texts": load_texts,
    "template": read_template,
    "series": lambda path: open_series(Path(path), None, None),
    "checkpoint": resolve,
    "sae": load_sae,
}


@pytest.fixture
def there(tiny_model: Path, data_file: Path, identity_sae: Path) -> dict[str, Path]:
    """What some of `READERS` read."""
    return {"questions": data_file, "checkpoint": tiny_model, "sae": identity_sae}


LAYOUTS = ("{split}/P19.{split}.json", "dataset/{split}/P19.{split}.json", "P19.{split}.json")


@pytest.mark.parametrize("name", [*READERS, *LAYOUTS])
@pytest.mark.usefixtures("isolated_cache")
def test_whatever_reads_what_an_option_names_is_looked_at_again_once_a_file_of_it_changes(
    known: Known, name: str, there: dict[str, Path], tmp_path: Path
) -> None:
    path, found = tmp_path / "x", there.get(name)
    if name in LAYOUTS:
        write_entity_questions(path, name)
    elif found is None:
        path.write_text("{{ question }}")
    else:
        (shutil.copytree if found.is_dir() else shutil.copy)(found, path)
    files = [one for one in (path, *path.rglob("*")) if one.is_file()]
    assert files
    for file in files:
        with noting_sources() as sources, contextlib.suppress(InputError):
            READERS.get(name, load_questions)(str(path))
        known.led(SPLIT, {}, sources).keep("split-1")
        assert known.result(SPLIT, {}) == "split-1"
        file.write_bytes(file.read_bytes() + b"\n")
        assert known.result(SPLIT, {}) is None, file


def write_entity_questions(folder: Path, layout: str) -> None:
    """Two questions of each split, in files of the names that `layout` says."""
    for split in SPLITS:
        path = folder / layout.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"question": f"Where was {one} born?", "answers": [split]} for one in (split, "Ada")]
        path.write_text(json.dumps(rows))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_questions_that_were_read_are_read_again_once_a_file_of_them_changes(
    layout: str, tmp_path: Path
) -> None:
    write_entity_questions(tmp_path, layout)
    with reading_once():
        for split in SPLITS:
            before = load_questions(str(tmp_path))
            assert load_questions(str(tmp_path)) is before
            file = tmp_path / layout.format(split=split)
            file.write_text(file.read_text().replace("born", "raised"))
            assert load_questions(str(tmp_path)).sha256 != before.sha256


def test_what_was_read_is_kept_while_its_file_stays_the_same(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_text("a")
    read = path.read_text
    assert read_once(path, "text", read) is not None
    with reading_once():
        first = read_once(path, "text", lambda: [read()])
        assert read_once(path, "text", lambda: [read()]) is first
        assert read_once(path, "other", lambda: [read()]) is not first
        path.write_text("ab")
        assert read_once(path, "text", lambda: [read()]) == ["ab"]
