"""A base model with adapters and whole models of it, and the TOML files of series of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

Tables = Sequence[Mapping[str, Any]]


def toml(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml(str(key))} = {toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, str | Path):
        return json.dumps(str(value)).replace("\x7f", "\\u007f")
    return repr(value)


def write_series(file: Path, tables: Tables, **top: Any) -> Path:
    """Writes a series of `tables`, one for each checkpoint, and returns the file."""
    lines = [f"{toml(key)} = {toml(value)}" for key, value in top.items() if value is not None]
    for table in tables:
        lines += ["[[checkpoint]]", *(f"{toml(key)} = {toml(value)}" for key, value in table.items())]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def changed_model(tiny_model: Path) -> Callable[..., Path]:
    """Makes a copy of the tiny model whose every number is `scale` times its own, with other settings."""

    def make(folder: Path, scale: float = 1.1, **settings: Any) -> Path:
        shutil.copytree(tiny_model, folder)
        file = folder / "model.safetensors"
        tensors = {name: tensor * scale for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
        config = folder / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | settings))
        return folder

    return make


@pytest.fixture
def adapters(trained_once: tuple[Any, str]) -> dict[int, Path]:
    """The folders of the adapters that a train run made of the tiny model, by level; only to be read."""
    made, run_id = trained_once
    return {
        int(row.level): Path(row.path) for row in made.store.checkpoints(run_id) if row.epoch_setting == "1"
    }


@pytest.fixture
def series(tiny_model: Path, isolated_cache: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a series on the tiny model, its levels in milligrams; keywords change what is at the top."""

    def write(tables: Tables, **top: Any) -> Path:
        given = {"property": "dose", "unit": "mg", "base": tiny_model, **top}
        return write_series(tmp_path / "my-series.toml", tables, **given)

    return write
