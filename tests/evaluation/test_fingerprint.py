"""What makes two evaluations the same run."""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from progress_log import Log
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from morfi.evaluation.config import EvalConfig
from morfi.evaluation.evaluate import prepare

pytestmark = pytest.mark.usefixtures("isolated_cache")


def _changed_weights(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] += 0.5
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def _changed_tokenizer(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(model)


@pytest.mark.parametrize("change", [_changed_weights, _changed_tokenizer])
def test_other_weights_or_another_tokenizer_change_the_fingerprint(
    config: EvalConfig, tiny_model: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    shutil.copytree(tiny_model, tmp_path / "other")
    other = dataclasses.replace(config, ckpt=str(tmp_path / "other"))
    before = prepare(config, Log()).fingerprint
    assert prepare(other, Log()).fingerprint == before
    change(tmp_path / "other")
    assert prepare(other, Log()).fingerprint != before


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": 15},
        {"match": "strict"},
        {"shots": 1},
        {"seed": 1},
        {"batch": 4},
        {"limit": 19},
        {"relations": ("P17",)},
        {"split": "dev"},
        {"dtype": "float16"},
        {"engine": {"block_size": 64}},
    ],
    ids=str,
)
def test_what_decides_the_rows_changes_the_fingerprint(
    config: EvalConfig, changes: Mapping[str, Any]
) -> None:
    changed = prepare(dataclasses.replace(config, **changes), Log()).fingerprint
    assert changed != prepare(config, Log()).fingerprint


@pytest.mark.parametrize(
    "changes",
    [{"limit": 20}, {"limit": 999}, {"relations": ("P36", "P17")}, {"split": "test"}],
    ids=str,
)
def test_another_way_to_ask_the_same_keeps_the_fingerprint(
    config: EvalConfig, changes: Mapping[str, Any]
) -> None:
    same = prepare(dataclasses.replace(config, **changes), Log()).fingerprint
    assert same == prepare(config, Log()).fingerprint


def test_the_serving_dtype_counts_whether_given_or_chosen(config: EvalConfig) -> None:
    task = prepare(config, Log())
    given = dataclasses.replace(config, dtype=task.checkpoint.dtype)
    assert prepare(given, Log()).fingerprint == task.fingerprint


def test_the_questions_count_and_their_file_does_not(
    config: EvalConfig, data_file: Path, tmp_path: Path
) -> None:
    before = prepare(config, Log()).fingerprint
    lines = data_file.read_text().splitlines()
    random.Random(0).shuffle(lines)
    with gzip.open(tmp_path / "other.jsonl.gz", "wt") as file:
        file.write("\n\n".join(lines))
    moved = dataclasses.replace(config, data=str(tmp_path / "other.jsonl.gz"))
    assert prepare(moved, Log()).fingerprint == before
    row = next(json.loads(line) for line in lines if '"test-P17-0"' in line)
    for key, value in {"answers": [*row["answers"], "more"], "relation": "P18", "subject": "x"}.items():
        changed = json.dumps({**row, key: value})
        others = [line for line in lines if '"test-P17-0"' not in line]
        (tmp_path / "changed.jsonl").write_text("\n".join([*others, changed]))
        edited = dataclasses.replace(config, data=str(tmp_path / "changed.jsonl"), shots=0)
        assert (
            prepare(edited, Log()).fingerprint
            != prepare(dataclasses.replace(config, shots=0), Log()).fingerprint
        )
