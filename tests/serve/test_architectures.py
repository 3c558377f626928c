"""Every architecture does what docs/models.md says, each on one engine on a tiny model of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import models_table
import pytest
import torch
from architecture_checks import ADAPTERS, YES, Opened, outcome
from architectures import ARCHITECTURES, REQUIRED
from hooked_model import Served, make_directions
from models_table import COLUMNS
from transformers import AutoModelForCausalLM

from morfi.checkpoints import resolve
from morfi.serve.engine import Engine

# Of each way to hand on a residual stream one: the others take long, and are marked `slow`.
QUICK = (
    "LlamaForCausalLM",  # the sum of two tensors
    "Gemma2ForCausalLM",  # with norms after attention and MLP
    "Qwen3MoeForCausalLM",  # with experts
    "GPT2LMHeadModel",  # one tensor
    "GraniteForCausalLM",  # what layers add is scaled
    "GPTNeoXForCausalLM",  # attention beside the MLP, in transformers' own layers
)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name) for name in ARCHITECTURES
    ],
)
def opened(
    request: pytest.FixtureRequest,
    isolated: Path,
    tiny_base: Callable[[str], Path],
    starts_vllm: None,
) -> Iterator[Opened]:
    """One engine of an architecture for all tests of it."""
    base = resolve(str(tiny_base(request.param)), dtype="float32")
    reference = AutoModelForCausalLM.from_pretrained(base.model_dir, dtype=torch.float32).eval()
    made = isolated / request.param
    made.mkdir()
    with Engine(base.model_dir, dtype="float32", context=256, sha256=base.sha256) as engine:
        directions = {engine.register(direction): direction for direction in make_directions(0)}
        served = Served(engine, reference, directions, list(directions))
        yield Opened(request.param, served, base, made)


@pytest.mark.parametrize("column", COLUMNS)
def test_an_architecture_does_what_the_table_says(opened: Opened, column: str) -> None:
    found = outcome(opened, column)
    if path := os.environ.get(models_table.FOUND):
        with Path(path).open("a") as file:
            file.write(json.dumps([opened.architecture, column, found]) + "\n")
    else:
        assert found == models_table.read()[opened.architecture][column]


def test_the_table_holds_the_architectures_that_are_tested() -> None:
    table = models_table.read()
    assert list(table) == list(ARCHITECTURES)
    assert models_table.written(table) in models_table.DOCUMENT.read_text()
    for name in REQUIRED:
        cells = dict(table[name])
        assert cells.pop("swap").partition(":")[0] in (YES, ADAPTERS)
        assert set(cells.values()) == {YES}
