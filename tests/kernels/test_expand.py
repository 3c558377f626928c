"""The kernel that makes the tables of a pass equals its reference, and compiles for sm_80 and sm_90."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ahead_of_time import compiled
from kernel_process import printed_by

from morfi.engine.steering import MAX_CAPTURED_LAYERS, MAX_ENTRIES
from morfi.kernels.expand import Part, Record, expand_
from morfi.kernels.residual import make_tables

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))


@pytest.mark.long
@pytest.mark.parametrize("device", ["cpu", GPU])
def test_the_kernel_equals_its_reference(device: str) -> None:
    script = Path(__file__).with_name("interpreted_expand.py")
    found = json.loads(printed_by(script, device, interpreted=device == "cpu"))
    assert len(found) == 5
    assert all(sum(each) > 20 for each in zip(*found, strict=True))


@pytest.mark.parametrize("capability", [80, 90])
def test_the_kernel_compiles_ahead_of_time(capability: int) -> None:
    parts = torch.zeros(256, len(Part._fields) + MAX_CAPTURED_LAYERS, dtype=torch.int32)
    records = torch.zeros(64, len(Record._fields), dtype=torch.int32)
    tables = make_tables(32, 16384, MAX_ENTRIES, MAX_CAPTURED_LAYERS)
    tables.captured = torch.zeros(16, 64)
    made = compiled(lambda: expand_(parts, records, tables, 17, 256), capability)
    assert f".target sm_{capability}" in made.asm["ptx"]
    assert made.asm["cubin"]
