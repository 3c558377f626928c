"""Nothing changes where prompts come in parts, and memory and bank are too small for all requests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hooked_model import (
    D_MODEL,
    PREFIX,
    Served,
    by_hooks,
    check_captured,
    check_mixed_batch,
    draw_steering,
    serving,
    state_of,
)

from morfi.engine.directions import Direction
from morfi.engine.protocol import Sampling
from morfi.engine.steering import Capture, Steering, to_json
from morfi.errors import InputError


@pytest.fixture(scope="module")
def squeezed(tiny_base: Callable[[str], Path], starts_vllm: None) -> Iterator[Served]:
    """An engine that computes prompts in parts and has too little memory for all requests of a batch."""
    settings = {
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 40,
        "max_num_seqs": 16,
        "num_gpu_blocks_override": 24,
    }
    with serving(tiny_base("llama"), **settings) as squeezed:
        yield squeezed


def test_prompts_in_parts_and_preempted_requests_equal_hooks(
    squeezed: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = squeezed.engine._llm.llm_engine.engine_core.engine_core.scheduler
    n_preempted, preempt = [], scheduler._preempt_request

    def count(*args: Any, **kwargs: Any) -> Any:
        n_preempted.append(1)
        return preempt(*args, **kwargs)

    monkeypatch.setattr(scheduler, "_preempt_request", count)
    check_mixed_batch(squeezed, seed=2, n_tokens=40)
    assert n_preempted


def test_more_directions_than_rows_in_the_bank(squeezed: Served) -> None:
    """A bank of 16 x 8 rows, 300 requests with a direction each: rows are taken over, none by two at once."""
    engine, draw = squeezed.engine, torch.Generator().manual_seed(6)
    n_slots = state_of(engine).bank.n_slots
    assert n_slots == 128
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
    assert state_of(engine).bank.n_used == n_slots


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


def test_a_seed_is_refused_where_a_prompt_may_be_computed_in_parts(squeezed: Served) -> None:
    seeded = Sampling(max_tokens=1, temperature=1.0, seed=5)
    with pytest.raises(InputError, match=r"a seed was given, and enable_chunked_prefill on a CPU"):
        squeezed.engine.generate([PREFIX], [seeded])
    for sampling in (Sampling(max_tokens=1, temperature=1.0), Sampling(max_tokens=1, seed=5)):
        assert squeezed.engine.generate([PREFIX], sampling)


def test_10000_random_requests_leave_nothing_behind(squeezed: Served) -> None:
    """Steered, captured, plain, refused and aborted ones, in too little memory for all at once."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    draw, core, state = random.Random(4), squeezed.engine._llm.llm_engine, state_of(squeezed.engine)
    n_done = {"ended": 0, "aborted": 0, "refused": 0}
    reported: list[str] = []
    refused_jointly: list[str] = []
    grown = []
    for number in range(10_000):
        prompt = [draw.randrange(3, 200) for _ in range(draw.randrange(2, 9))]
        steering = draw_steering(squeezed, draw, len(prompt))
        capture = draw.choice((None, Capture((1,)), Capture((0, 1), "all")))
        specification: dict[str, Any] = to_json(steering, capture)
        kind = draw.choice(("ended", "ended", "ended", "aborted", "refused"))
        if kind == "refused":
            specification["steering"] = [{"layer": 99, "direction": squeezed.names[0]}]
        is_reported = draw.random() < 0.3
        params = SamplingParams(
            temperature=1,
            max_tokens=draw.randrange(1, 4),
            n=draw.choice((1, 1, 1, 2)),
            detokenize=False,
            extra_args={"morfi": {**specification, "report": is_reported}},
        )
        n_done[kind] += 1
        try:
            own_id = core.add_request(f"leak-{number}", {"prompt_token_ids": prompt}, params)
        except VLLMValidationError as refused:
            if kind != "refused":
                # Projections at many combinations of positions may need more rows than a request has.
                refused_jointly.append(str(refused))
            continue
        if is_reported:
            reported += [own_id] if params.n == 1 else [f"{sample}_{own_id}" for sample in range(params.n)]
        if kind == "aborted":
            for _ in range(draw.randrange(3)):
                core.step()
            core.abort_request([f"leak-{number}"])
        if number % 100 == 99:
            while core.has_unfinished_requests():
                core.step()
            core.collective_rpc("morfi_take_reports", args=(reported,))
            reported = []
            grown.append(psutil.Process().memory_info().rss)
    squeezed.engine.generate([PREFIX], Sampling(max_tokens=1))  # workers hear in the next step who has ended
    assert min(n_done.values()) > 1000
    assert len(refused_jointly) < 100
    assert all("give the projections the same positions" in reason for reason in refused_jointly)
    assert (state.live, state.ended, state.work) == ({}, {}, {})
    assert state.bank.n_used <= state.bank.n_slots
    assert len(squeezed.engine._admission.registry) == len(squeezed.names)
    assert grown[-1] - grown[len(grown) // 2] < 20e6
