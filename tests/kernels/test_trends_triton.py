"""The kernels of trends equal their references in Triton's interpreter, and compile for sm_80 and sm_90."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ahead_of_time import bench
from kernel_process import printed_by

from morfi.kernels import encode_fused


@pytest.mark.long
def test_the_kernels_equal_their_references_in_the_interpreter() -> None:
    script = Path(__file__).with_name("interpreted_trends.py")
    found = json.loads(printed_by(script))
    assert {name: len(cases) for name, cases in found.items()} == {
        "resampled": 3,
        "stable": 32,
        "paged": 16,
        "whole": 4,
    }
    assert min(found["whole"]) >= 2
    for cases in found.values():
        assert max(cases) > 0


@pytest.mark.long
def test_the_benchmark_tries_itself_without_a_gpu() -> None:
    script = Path(__file__).parents[2] / "bench" / "trends_gpu.py"
    printed = printed_by(script, "--small")
    assert printed.startswith("every kernel is right")
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| 64 | 96 | ")]
    assert [row[2] for row in rows] == ["0.05 %", "0.15 %", "0.5 %", "2 %"]
    assert rows[-1][-1] == "library |"


def check(found: Any, capability: int) -> None:
    # Some versions of ptxas put a number on the stack where registers are free.
    assert found.spilled <= (8 if found.registers <= 64 else 0)
    assert found.shared <= bench.SHARED_LIMIT[capability]
    assert 0 < found.registers <= 255


@pytest.mark.long
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", bench.FUSED)
def test_the_fused_kernel_compiles_without_spills(kind: str, dtype: torch.dtype, capability: int) -> None:
    found = bench.encode_resources(kind, dtype, "fused", capability)
    check(found, capability)
    assert found.n_warps == encode_fused.block_of(dtype)["num_warps"]
    assert found.shared >= 64 * 1024, "the loads are not pipelined"


@pytest.mark.long
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", bench.COMPACTED)
def test_the_compacting_kernel_compiles_without_spills(kind: str, capability: int) -> None:
    check(bench.encode_resources(kind, torch.float32, "library", capability), capability)


@pytest.mark.long
@pytest.mark.parametrize("capability", [80, 90])
def test_what_follows_compiles_without_spills(capability: int) -> None:
    check(bench.sums_resources(capability), capability)
    for n_conditions in (3, 7, 10, 21):
        for is_resampled in (True, False):
            check(bench.trend_resources(capability, n_conditions, is_resampled=is_resampled), capability)
        check(bench.page_resources(capability, n_conditions), capability)
