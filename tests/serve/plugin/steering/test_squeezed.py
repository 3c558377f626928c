"""Nothing changes where prompts come in parts, and memory and bank are too small for all requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_path import AS_ON_A_GPU, BY_REFERENCE, call
from hooked_model import (
    D_MODEL,
    PREFIX,
    Served,
    by_hooks,
    check_captured,
    check_mixed_batch,
    serving,
)
from inside_engine import ask_at_random, count_preemptions, n_preempted, slots

from morfi.engine.directions import Direction
from morfi.engine.protocol import Sampling
from morfi.engine.steering import Capture, Steering
from morfi.errors import InputError

SETTINGS: dict[str, Any] = {
    "enable_chunked_prefill": True,
    "max_num_batched_tokens": 40,
    "max_num_seqs": 16,
    "num_gpu_blocks_override": 24,
}
ON_CPU = pytest.param(None, id="on a CPU")
ON_GPU = pytest.param(BY_REFERENCE, id="as on a GPU", marks=pytest.mark.slow)
BY_KERNEL = pytest.param(AS_ON_A_GPU, id="as on a GPU, by kernels", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[ON_CPU, ON_GPU])
def squeezed(
    request: pytest.FixtureRequest, tiny_base: Callable[[str], Path], starts_vllm: None
) -> Iterator[Served]:
    """An engine that computes prompts in parts and has too little memory for all requests of a batch."""
    with serving(tiny_base("llama"), request.param, **SETTINGS) as squeezed:
        call(squeezed.engine, count_preemptions)
        yield squeezed


@pytest.mark.parametrize("squeezed", [ON_CPU, ON_GPU, BY_KERNEL], indirect=True)
def test_prompts_in_parts_and_preempted_requests_equal_hooks(squeezed: Served) -> None:
    before = call(squeezed.engine, n_preempted)
    check_mixed_batch(squeezed, seed=2, n_tokens=40)
    assert call(squeezed.engine, n_preempted) > before


def test_more_directions_than_rows_in_the_bank(squeezed: Served) -> None:
    """A bank of 16 x 8 rows, 300 requests with a direction each: rows are taken over, none by two at once."""
    engine, draw = squeezed.engine, torch.Generator().manual_seed(6)
    assert call(engine, slots)["n"] == 128
    directions = [Direction(torch.randn(D_MODEL, generator=draw)) for _ in range(300)]
    names = [engine.register(direction) for direction in directions]
    found = engine.generate(
        [PREFIX[:5]] * 300,
        Sampling(max_tokens=1),
        steering=[[Steering(1, name, strength=3.0)] for name in names],
        capture=Capture((1,)),
    )
    (plain,) = engine.generate([PREFIX[:5]], Sampling(max_tokens=1), capture=Capture((1,)))
    for direction, (one,) in zip(directions, found, strict=True):
        change = one.captured[0].values[0] - plain[0].captured[0].values[0]
        torch.testing.assert_close(change, 3 * direction.vector, rtol=1e-4, atol=1e-4)
    for name in names:
        engine.release(name)
    assert call(engine, slots)["used"] == 128


def test_the_step_in_which_a_batchmate_ends_and_each_part_of_a_prompt_are_steered(squeezed: Served) -> None:
    long = PREFIX + PREFIX[:40]  # computed in parts: 40 tokens fit in a step
    wanted = [Steering(0, squeezed.names[1], strength=1.0)]
    mates = [Sampling(max_tokens=n) for n in (12, 1, 2, 3)]
    capture = Capture((0, 1), "all")
    found = squeezed.engine.generate(
        [long, *[PREFIX[:3]] * 3], mates, steering=[wanted, [], [], []], capture=capture
    )
    tokens, after, _ = by_hooks(squeezed, long, wanted, 12)
    assert list(found[0][0].token_ids) == tokens
    check_captured(found[0][0], capture, long, after)


@pytest.mark.parametrize("squeezed", [ON_CPU], indirect=True)
def test_a_seed_is_refused_where_a_prompt_may_be_computed_in_parts(squeezed: Served) -> None:
    seeded = Sampling(max_tokens=1, temperature=1.0, seed=5)
    with pytest.raises(InputError, match=r"a seed was given, and enable_chunked_prefill on a CPU"):
        squeezed.engine.generate([PREFIX], [seeded])
    for sampling in (Sampling(max_tokens=1, temperature=1.0), Sampling(max_tokens=1, seed=5)):
        assert squeezed.engine.generate([PREFIX], sampling)


def test_random_requests_leave_nothing_behind(squeezed: Served) -> None:
    """Steered, captured, plain, refused and aborted ones, in too little memory for all at once."""
    n = 10_000 if squeezed.ways is None else 300  # vLLM's kernels are interpreted
    left = call(squeezed.engine, ask_at_random, squeezed.directions, n)
    assert min(left.kinds.values()) > n / 10
    assert len(left.refused_jointly) < n / 100
    assert all("give the projections the same positions" in reason for reason in left.refused_jointly)
    assert left.state == ({}, {}, {})
    assert left.slots["used"] <= left.slots["n"]
    assert left.n_registered == len(squeezed.names)
    assert left.resident[-1] - left.resident[len(left.resident) // 2] < 20e6
