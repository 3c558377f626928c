"""The residual kernel equals its reference in Triton's interpreter, and compiles for sm_80 and sm_90."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ahead_of_time import compiled
from kernel_process import printed_by

from morfi.engine.steering import MAX_CAPTURED_LAYERS, MAX_ENTRIES
from morfi.kernels.residual import Directions, Numbers, make_tables, residual_

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.mark.long
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_the_kernel_equals_its_reference(device: str) -> None:
    script = Path(__file__).with_name("interpreted_residual.py")
    found = json.loads(printed_by(script, device, interpreted=device == "cpu"))
    assert len(found["changed"]) == 18
    assert min(found["changed"]) > 0
    assert found["left"]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("d_model", "has_residual"), [(576, True), (4096, True), (768, False)])
def test_the_kernel_compiles_ahead_of_time(
    capability: int, dtype: torch.dtype, d_model: int, *, has_residual: bool
) -> None:
    hidden = torch.zeros(16, d_model, dtype=dtype)
    rows = torch.zeros(4, d_model)
    directions = Directions(rows, rows, torch.zeros(4, len(Numbers._fields)))
    tables = make_tables(32, 16384, MAX_ENTRIES, MAX_CAPTURED_LAYERS)
    residual = hidden if has_residual else None
    made = compiled(lambda: residual_(hidden, residual, tables.active[15], tables, directions), capability)
    assert f".target sm_{capability}" in made.asm["ptx"]
    assert made.asm["cubin"]
    if dtype == torch.float32 and not d_model % 512:
        assert "ld.global.v4" in made.asm["ptx"], "16 bytes at a time"
