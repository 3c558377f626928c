"""Whatever runs beside a request or before it, its answer is the one it gets alone with nothing cached."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from gpu_path import BY_REFERENCE, EngineElsewhere, call
from inside_engine import count_preemptions
from interleavings import CONTEXT, run_interleavings

from morfi.serve.engine import Engine

# The first computes prompts in parts and has too little memory for all.
SETTINGS: Mapping[str, dict[str, Any]] = {
    "in parts": {
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 48,
        "max_num_seqs": 8,
        "num_gpu_blocks_override": 22,
    },
    "whole": {"max_num_seqs": 8, "num_gpu_blocks_override": 40},
}
Run = Callable[..., Counter[str]]
SOME = [
    *(pytest.param((name, None), 20, 20, id=name) for name in SETTINGS),
    # vLLM's own kernels are interpreted, which takes 25 s for a crowd of requests.
    pytest.param(("in parts", BY_REFERENCE), 4, 15, id="as on a GPU", marks=pytest.mark.slow),
]
MANY = [pytest.param((name, None), name == "in parts", id=name) for name in SETTINGS]


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, tiny_base: Callable[[str], Path], starts_vllm: None) -> Iterator[Run]:
    """Runs interleavings on one engine; `run_interleavings` says how."""
    name, ways = request.param
    start = Engine if ways is None else functools.partial(EngineElsewhere, ways=ways)
    # Runner V1 on a CPU draws other samples where prompts are computed in parts.
    takes_seeds = name == "whole" or ways is not None
    with start(tiny_base("llama"), dtype="float32", context=CONTEXT, overrides=SETTINGS[name]) as engine:
        call(engine, count_preemptions)

        def run(**how: Any) -> Counter[str]:
            here = functools.partial(run_interleavings, takes_seeds=takes_seeds, **how)
            found: Counter[str] = call(engine, here)
            return found

        yield run


@pytest.mark.parametrize(("run", "n_examples", "n_steps"), SOME, indirect=["run"])
def test_each_request_is_answered_as_if_alone(run: Run, n_examples: int, n_steps: int) -> None:
    seen = run(n_examples=n_examples, n_steps=n_steps, derandomize=True)
    assert min(seen[what] for what in ("steered, cached", "plain, cached", "captured", "aborted")) > 0, seen


@pytest.mark.slow
@pytest.mark.parametrize(("run", "is_crowded"), MANY, indirect=["run"])
def test_each_of_many_requests_is_answered_as_if_alone(run: Run, is_crowded: bool) -> None:
    seen = run(n_examples=60, n_steps=30, derandomize=False)
    assert seen["steered, cached"] > 30, seen
    assert seen["preempted"] or not is_crowded, seen
