"""Both ways to encode on a GPU keep the same latents, and the one that is taken is a rule's or the user's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kernel_process import printed_by

from morfi.device import is_gpu
from morfi.errors import InputError
from morfi.kernels.encode import chosen_way, is_fused_faster, row_limits, start_tile
from morfi.kernels.encoder import Encoder


@pytest.mark.long
@pytest.mark.parametrize(
    "interpreted",
    [True, pytest.param(False, marks=pytest.mark.skipif(not is_gpu(), reason="there is no GPU"))],
)
def test_both_ways_keep_the_same_latents(*, interpreted: bool) -> None:
    script = Path(__file__).with_name("encoded_both_ways.py")
    # What cuBLAS asks for where only deterministic algorithms may run.
    found = json.loads(printed_by(script, interpreted=interpreted, CUBLAS_WORKSPACE_CONFIG=":4096:8"))
    kept = {name: [case[0] for case in found[name]] for name in ("random", "silent", "empty", "crowded")}
    assert {name: len(cases) for name, cases in found.items()} == {
        "random": 48,
        "silent": 2,
        "empty": 1,
        "crowded": 1,
        "exact": 24,
    }
    assert min(kept["random"]) > 0
    assert kept["silent"] == [0, 0]
    assert kept["empty"] == [0]
    assert kept["crowded"][0] > 1024  # what there is room for at first
    assert min(found["exact"]) > 100
    # Nearer to its threshold than the two ways round: at most one in 10,000 of what is kept.
    assert sum(differing for _, differing in found["random"]) <= sum(kept["random"]) / 10_000


@pytest.mark.parametrize(
    ("d_model", "dtype", "density", "expected"),
    [
        (576, torch.bfloat16, 0.0015, True),
        (4096, torch.bfloat16, 0.0015, True),
        (576, torch.float16, 0.005, False),  # an addition for each that is kept costs more than the pass
        (4096, torch.bfloat16, 0.005, False),
        (4096, torch.float32, 0.0015, True),  # which cuBLAS does not multiply in tensor cores
        (4096, torch.float32, 0.2, False),
    ],
)
def test_the_rule_is_by_width_dtype_and_density(
    d_model: int, dtype: torch.dtype, density: float, *, expected: bool
) -> None:
    assert is_fused_faster(d_model, dtype, density) == expected


def test_a_cpu_has_one_way_and_refuses_the_other() -> None:
    x, encoder = torch.ones(3, 8), Encoder(torch.ones(8, 5), torch.zeros(5))
    assert chosen_way(encoder, [x], 5) == "library"
    for way, words in (("fused", "needs a GPU"), ("slow", "expected one of fused, library")):
        other = replace(encoder, way=way)  # type: ignore[arg-type]
        for call in (lambda e: start_tile(x, e, slice(0, 5)), lambda e: chosen_way(e, [x], 5)):
            with pytest.raises(InputError, match=words):
                call(other)


def test_limits_of_a_row_lie_between_what_it_keeps_and_the_next() -> None:
    def limits(*pre: float) -> float:
        encoder = Encoder(torch.tensor([pre]), torch.zeros(len(pre)), "topk", k=2)
        found = row_limits(torch.ones(1, 1), encoder, 2)
        assert found is not None
        return float(found)

    assert limits(1.0, 6.0, 3.0, 8.0) == 4.5
    assert limits(1.0, 3.0, 3.0, 8.0) == 3.0  # a tie: both are kept
    assert limits(6.0, 8.0) < -1e38  # nothing is left out
    following = torch.nextafter(torch.tensor(3.0), torch.tensor(4.0))
    assert limits(8.0, float(following), 3.0) == float(following)  # there is nothing between
