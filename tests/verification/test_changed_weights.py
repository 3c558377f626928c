"""The whole model that is swapped in: what is written, that it leaves again, and where there is no room."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from morfi.checkpoints.live import check_same_form, live_tensors
from morfi.checkpoints.model_files import open_model
from morfi.verification import changed_weights
from morfi.verification.changed_weights import changed_model, lack_of_room


def test_every_weight_is_another_one_and_the_folder_leaves(tiny_model: Path) -> None:
    model = open_model(tiny_model)
    with changed_model(model) as folder:
        changed = open_model(folder)
        check_same_form(changed, model)
        for name in live_tensors(model):
            assert not changed.weights.tensor(name).equal(model.weights.tensor(name)), name
    assert not folder.exists()


def test_a_lack_of_room_is_said(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(tiny_model)
    assert lack_of_room(model, "float32") is None
    n_weights = sum(model.weights.tensor(name).numel() for name in live_tensors(model))
    monkeypatch.setattr(changed_weights, "available_memory", lambda: 5 * n_weights)
    assert lack_of_room(model, "float32") is None
    assert "a second model in transformers needs" in str(lack_of_room(model, "bfloat16"))

    def full(_: Any) -> SimpleNamespace:
        return SimpleNamespace(free=1000)

    monkeypatch.setattr(shutil, "disk_usage", full)
    assert "set TMPDIR to where there is room" in str(lack_of_room(model, "float32"))
