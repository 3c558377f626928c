"""A series in TOML: read whole, or refused with all its faults at once."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from morfi.checkpoints import resolve
from morfi.conditions.condition import BASE, Condition
from morfi.conditions.file import open_series
from morfi.conditions.levels import Property
from morfi.conditions.listing import files_of
from morfi.errors import InputError

Write = Callable[..., Path]


def faults_of(file: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        open_series(file, None, None)
    head, *faults = str(caught.value).split("\n  ")
    assert head == f"{file}: {len(faults)} fault{'s' if len(faults) > 1 else ''}"
    return faults


def test_a_series_is_ordered_by_level_seed_and_epochs(
    series: Write, adapters: dict[int, Path], changed_model: Write, tmp_path: Path
) -> None:
    changed_model(tmp_path / "whole")
    file = series(
        [
            {"path": "whole", "level": 7.5, "epochs": "final", "name": "strongest"},
            {"path": adapters[50], "level": -1, "seed": 1.0, "epochs": "early-stop", "name": "M_-1"},
            {"path": adapters[0], "level": -1, "seed": 1, "epochs": 10.0},
            {"path": adapters[100], "level": -1.0, "seed": 0, "epochs": 2.5},
        ]
    )
    found = open_series(file, None, None)
    assert found.conditions == (
        BASE,
        Condition(-1, 0, "2.5", None),
        Condition(-1, 1, "10", 10),
        Condition(-1, 1, "early-stop", None),
        Condition(7.5, 0, "final", None),
    )
    assert [one.epoch for one in found.conditions] == [None, None, 10, None, None]
    assert (found.varied, found.source) == (Property("dose", "mg"), str(file))
    assert (found.varied.label, found.varied.shown(7.5)) == ("dose (mg)", "7.5 mg")
    assert found.bos == "auto"
    last = found.conditions[-1]
    assert last.label == "M_7.5, seed 0, epoch final"
    whole = found.open(last)
    assert (whole.name, whole.adapter_dir, whole.model_dir) == ("strongest", None, tmp_path / "whole")
    assert whole.sha256 == resolve(str(tmp_path / "whole")).sha256
    assert whole.base_sha256 == found.base.sha256
    rows = files_of(found)
    assert [(row.level, row.kind) for row in rows] == [*[(-1, "adapter")] * 3, (7.5, "model")]
    assert rows[-1].n_bytes == (tmp_path / "whole" / "model.safetensors").stat().st_size
    assert rows[0].sha256 == resolve(str(adapters[100])).sha256


def test_a_checkpoint_that_changed_since_is_not_opened(
    series: Write, adapters: dict[int, Path], changed_model: Write, tmp_path: Path
) -> None:
    whole = changed_model(tmp_path / "whole")
    file = series([{"path": adapters[0], "level": 0}, {"path": "whole", "level": 1}])
    found = open_series(file, None, None)
    shutil.rmtree(whole)
    changed_model(whole, 1.2)
    with pytest.raises(InputError, match=r"whole is not what it was when .*my-series\.toml was read"):
        found.open(found.conditions[-1])
    assert open_series(file, None, None).sha256 != found.sha256


WRONG: list[tuple[Mapping[str, Any], str]] = [
    ({"level": True}, "level is true; expected a number"),
    ({"level": math.nan}, "level is nan; expected a finite number"),
    ({"level": -math.inf}, "level is -inf; expected a finite number"),
    ({"level": "7"}, "level is '7'; expected a number"),
    ({"seed": -1}, "seed is -1; expected a whole number from 0"),
    ({"seed": 1.5}, "seed is 1.5; expected a whole number from 0"),
    ({"epochs": "a/b"}, "epochs is 'a/b'; expected a number from 0 or a name"),
    ({"epochs": -1}, "epochs is -1; expected a number from 0 or a name"),
    ({"epochs": "007"}, "epochs is '007'; expected a number from 0 or a name"),
    ({"name": "a\nb"}, r"name is 'a\nb'; expected a text on one line"),
    ({"path": " "}, "path is ' '; expected a text on one line"),
    ({"path": "./nowhere"}, "/nowhere; expected a model or adapter folder"),
    ({"path": "a/b/c"}, "/a/b/c; expected a model or adapter folder"),
    ({"path": "nowhere"}, "/nowhere; expected a model or adapter folder"),
    ({"path": "no/where"}, "no/where is not a folder here and could not be fetched from the hub"),
    ({"path": "~nobody-here/x"}, "/~nobody-here/x; expected a model or adapter folder"),
    ({"name": "base"}, "the name 'base' stands for another checkpoint in --ckpt"),
    ({"name": "M_0"}, "the name 'M_0' stands for another checkpoint in --ckpt"),
    ({"path": "x" * 5000}, "give a folder or a hub id"),
    ({"levle": 3}, "the key 'levle' is none of path, level, seed, epochs, name. Did you mean \"level\"?"),
]


@pytest.mark.parametrize(("change", "fault"), WRONG)
def test_what_is_wrong_in_a_table_is_said_with_its_place(
    change: Mapping[str, Any], fault: str, series: Write, adapters: dict[int, Path]
) -> None:
    sound = {"path": adapters[0], "level": 0} | ({"epochs": 1} if "epochs" in change else {})
    found = faults_of(series([sound, {"path": adapters[50], "level": 1, **change}]))
    assert len(found) == 1
    assert found[0].startswith("checkpoint 2 (" if "path" not in change or change["path"] else "checkpoint 2")
    assert fault in found[0]


def test_long_paths_that_begin_alike_are_told_apart(series: Write, tmp_path: Path) -> None:
    folders = [tmp_path / ("long" * 20) / f"level-{level}-seed-0" / "epoch-02" for level in (0, 50)]
    found = faults_of(series([{"path": folder, "level": math.nan} for folder in folders]))
    for number, level in ((1, 0), (2, 50)):
        assert any(
            one.startswith(f"checkpoint {number} (...") and f"/level-{level}-seed-0/epoch-02): " in one
            for one in found
        )


@pytest.mark.parametrize("given", [{0}, {2}, {0, 2}])
def test_epochs_are_given_for_all_or_for_none(
    given: set[int], series: Write, adapters: dict[int, Path]
) -> None:
    tables: list[dict[str, Any]] = [{"path": adapters[level], "level": level} for level in (0, 50, 100)]
    for number in given:
        tables[number]["epochs"] = "final"  # what is meant where none is given
    assert faults_of(series(tables)) == [
        f"epochs is given for {len(given)} of 3 checkpoints; give it for all or for none"
    ]


def test_a_path_is_looked_at_whatever_else_is_wrong(series: Write, adapters: dict[int, Path]) -> None:
    tables = [{"path": adapters[0], "level": 0}, {"path": "./gone", "levle": 1}]
    found = faults_of(series(tables))
    assert [one for one in found if "there is no folder" in one and one.endswith("adapter folder")]
    assert any("level is missing" in one for one in found)
    assert any("/gone" in one for one in faults_of(series(tables, base="./no-base")))


def test_all_faults_are_said_in_one_go(
    series: Write, adapters: dict[int, Path], tmp_path: Path, tiny_model: Path
) -> None:
    tables = [
        {"path": adapters[0], "level": 0, "name": "one"},
        {"path": adapters[0], "level": 0, "name": "one"},
        {"path": tiny_model, "level": math.nan},
        {"path": tiny_model, "level": 3},
        {"level": 1, "path": "./gone"},
    ]
    found = faults_of(series(tables, unit=7, propperty="x", property=None))
    for number, said in enumerate(
        (
            "the key 'propperty' is none of property, unit, base, checkpoint. Did you mean \"property\"?",
            "level is nan",
            "M_0, seed 0, epoch final is checkpoint 1",
            "the name 'one' is that of checkpoint 1",
            "property is missing; expected a text on one line",
            "unit is 7; expected a text on one line",
            f"{str(adapters[0])[-57:]}): ",
            "/gone; expected a model or adapter folder",
            "checkpoint 4 ",
        )
    ):
        assert said in found[number]
    assert "it is equal to checkpoint 1" in found[6]
    assert "it is equal to the base" in found[8]
    assert len(found) == 9


def test_the_checkpoint_of_early_stopping_may_be_that_of_an_epoch(
    series: Write, adapters: dict[int, Path]
) -> None:
    tables = [
        {"path": adapters[0], "level": 0, "epochs": 1},
        {"path": adapters[0], "level": 0, "epochs": "early-stop"},
        {"path": adapters[50], "level": 50, "epochs": 1},
    ]
    assert len(open_series(series(tables), None, None).members) == 3
    found = faults_of(series([*tables, {"path": adapters[0], "level": 0, "epochs": 1, "seed": 1}]))
    assert len(found) == 1
    assert "it is equal to checkpoint " in found[0]


def test_a_series_needs_two_levels(series: Write, adapters: dict[int, Path]) -> None:
    assert faults_of(series([])) == ["there is no checkpoint; a series has at least two, of different levels"]
    one = {"path": adapters[0], "level": 0.5}
    assert "there is one checkpoint; a series has" in faults_of(series([one]))[0]
    same = faults_of(series([one, {"path": adapters[50], "level": 0.5, "seed": 1}]))
    assert same == ["all levels are 0.5; a series has at least two different ones"]


def other_tokenizer(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary["<0x41>"], vocabulary["<0x42>"] = 69, 68
    file.write_text(json.dumps(content))


def quantised(folder: Path) -> None:
    change(folder, quantization_config={"quant_method": "gptq"})


def change(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def lower_precision(folder: Path) -> None:
    import torch

    file = folder / "model.safetensors"
    save_file({name: t.to(torch.float16) for name, t in load_file(file).items()}, file, {"format": "pt"})
    change(folder, dtype="float16")


def ends_otherwise(folder: Path) -> None:
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": 2}))


DAMAGED: list[tuple[Callable[[Path], None], str]] = [
    (other_tokenizer, "comes with a tokenizer that is not that of its base"),
    (quantised, "says that the model is quantised (gptq)"),
    (lambda folder: change(folder, rope_theta=5e5, rope_parameters=None), "has the setting rope"),
    (lambda folder: change(folder, rms_norm_eps=1e-3), "has the setting rms_norm_eps = 0.001"),
    (lower_precision, "has the dtype float16, and the base"),
    (ends_otherwise, "has end tokens 2, and the base"),
    (lambda folder: (folder / "model.safetensors").unlink(), "weights"),
    (lambda folder: (folder / "config.json").unlink(), "config.json"),
]


@pytest.mark.parametrize(("damage", "fault"), DAMAGED)
def test_a_whole_model_that_the_engine_cannot_become_is_refused(
    *,
    damage: Callable[[Path], None],
    fault: str,
    series: Write,
    adapters: dict[int, Path],
    changed_model: Write,
    tmp_path: Path,
) -> None:
    damage(changed_model(tmp_path / "whole"))
    found = faults_of(series([{"path": adapters[0], "level": 0}, {"path": "whole", "level": 1}]))
    assert len(found) == 1
    assert found[0].startswith("checkpoint 2 (whole): ")
    assert fault in found[0]


def test_an_adapter_of_another_base_is_refused(
    series: Write, adapters: dict[int, Path], changed_model: Write, tmp_path: Path
) -> None:
    other = changed_model(tmp_path / "other")
    tables = [{"path": adapters[level], "level": level} for level in (0, 50)]
    found = faults_of(series(tables, base=other))
    assert len(found) == 2
    assert all("which does not hold the model other that is served" in fault for fault in found)
    assert "is an adapter; give the model" in faults_of(series(tables, base=adapters[0]))[0]
    assert "/nothing; expected a model or adapter folder" in faults_of(series(tables, base="./nothing"))[0]


@pytest.mark.parametrize("text", ["checkpoint = 3", "[checkpoint]\npath = 'x'", "checkpoint = [1]"])
def test_checkpoints_that_are_no_tables_are_refused(text: str, series: Write) -> None:
    file = series([])
    file.write_text(f"{file.read_text()}\n{text}")
    assert "expected [[checkpoint]] tables" in faults_of(file)[0]


def test_what_is_no_toml_is_refused(tmp_path: Path) -> None:
    for content in (b"a = ", b"\xff\xfe", b"a = " + b"[" * 20_000, b"a = " + b"9" * 5000):
        (tmp_path / "x.toml").write_bytes(content)
        with pytest.raises(InputError, match="is not valid TOML"):
            open_series(tmp_path / "x.toml", None, None)
    with pytest.raises(InputError, match="No such file"):
        open_series(tmp_path / "none.toml", None, None)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=12)
scalars = st.one_of(
    texts,
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.floats(),
    st.sampled_from(["early-stop", "10", "a b"]),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2)
)
keys = st.sampled_from(["path", "level", "seed", "epochs", "name"]) | texts
tables = st.lists(st.dictionaries(keys, values, max_size=5), max_size=4)
tops = st.dictionaries(st.sampled_from(["property", "unit", "base"]) | texts, values, max_size=4)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tops=tops, tables=tables, sound=st.booleans())
def test_no_file_gives_more_than_a_refusal(
    *,
    tops: dict[str, Any],
    tables: list[dict[str, Any]],
    sound: bool,
    series: Write,
    adapters: dict[int, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_hub(name: str, *_: object) -> Path:
        raise InputError(f"{name} could not be fetched")

    monkeypatch.setattr("morfi.checkpoints.checkpoint._download", no_hub)
    paths = iter(adapters.values())
    if sound:  # what is drawn stands over what is sound
        tables = [{"path": next(paths, adapters[0]), "level": n} | one for n, one in enumerate(tables)]
    top = {"property": "dose"} | tops if sound else tops
    file = series(tables, **{f" {key}" if key in ("tables", "checkpoint") else key: top[key] for key in top})
    with contextlib.suppress(InputError):
        found = open_series(file, None, None)
        assert len({one.id for one in found.conditions}) == len(tables) + 1
        assert all(math.isfinite(one.level) for one in found.members)
