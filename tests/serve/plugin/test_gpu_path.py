"""A GPU's engine, run on a CPU: it equals the CPU's own, and a missing operation is found out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_path import EngineElsewhere, Ways, left_behind

from morfi.engine.directions import Direction
from morfi.engine.protocol import Completion, Sampling
from morfi.engine.steering import Capture, Steering
from morfi.errors import MorfiError
from morfi.serve.engine import Engine

LENGTHS = (1, 4, 6)
DIRECTION = Direction(torch.linspace(-3, 3, 64))
MP = {"distributed_executor_backend": "mp"}


@dataclass(frozen=True)
class Run:
    """A way to run an engine."""

    ways: Ways
    overrides: Mapping[str, Any] = field(default_factory=dict)
    captured: bool = False  # in the step that is broken


CPU = Run(Ways(runner=1, asynchronous=False, tables=False))
RUNS = {
    "v2 synchronous": Run(Ways(asynchronous=False, kernel=True), captured=True),
    "v2 queue": Run(Ways(kernel=True)),
    "v2 queue, captured": Run(Ways(), captured=True),
    "v2 processes": Run(Ways(), MP),
    "v2 processes, synchronous": Run(Ways(asynchronous=False), MP, captured=True),
    "v1 synchronous": Run(Ways(runner=1, asynchronous=False)),
    "v1 processes": Run(Ways(runner=1, asynchronous=False), MP, captured=True),
}
SLOW = ("v2 processes, synchronous", "v1 processes")


def ask(engine: Engine, *, steered: bool, captured: bool, ended: list[int] | None = None) -> list[Completion]:
    wanted = [Steering(0, DIRECTION.sha256, strength=9.0)] if steered else []
    found = engine.generate(
        [[3, 4, 5 + number] for number in range(len(LENGTHS))],
        [Sampling(max_tokens=n) for n in LENGTHS],
        None if ended is None else ended.append,
        steering=[wanted] * len(LENGTHS),
        capture=Capture((0, 1), "all") if captured else None,
    )
    return [one for (one,) in found]


@pytest.fixture(scope="module")
def elsewhere(
    tiny_base: Callable[[str], Path], starts_vllm: None
) -> Iterator[Callable[[Run], EngineElsewhere]]:
    """Starts an engine in the one other process, in place of the one before."""
    settings: dict[str, Any] = {"dtype": "float32", "context": 64}
    base = tiny_base("llama")
    with EngineElsewhere(base, ways=CPU.ways, **settings) as engine:

        def start(run: Run) -> EngineElsewhere:
            engine.start(base, ways=run.ways, **settings, overrides=run.overrides)
            assert engine.call(left_behind) == []
            engine.register(DIRECTION)
            return engine

        yield start


@pytest.fixture(scope="module")
def expected(elsewhere: Callable[[Run], EngineElsewhere]) -> dict[bool, list[Completion]]:
    """What the CPU's own engine answers, steered and not."""
    engine = elsewhere(CPU)
    return {steered: ask(engine, steered=steered, captured=steered) for steered in (True, False)}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in RUNS]
)
def test_tables_equal_the_cpu_and_no_answer_leaves_a_step_whose_operation_did_not_run(
    elsewhere: Callable[[Run], EngineElsewhere], expected: dict[bool, list[Completion]], name: str
) -> None:
    engine = elsewhere(RUNS[name])
    found = ask(engine, steered=True, captured=True)
    assert ask(engine, steered=False, captured=False) == expected[False]
    assert [one.applied[0].n_tokens for one in found] == [3, 6, 8]
    for mine, its, plain in zip(found, expected[True], expected[False], strict=True):
        assert mine.token_ids == its.token_ids != plain.token_ids
        assert mine.applied == its.applied
        for one, other in zip(mine.captured, its.captured, strict=True):
            torch.testing.assert_close(one.values, other.values, rtol=1e-4, atol=1e-4)
    engine.break_operation()
    ended: list[int] = []
    with pytest.raises(MorfiError, match="layer 0 was to be steered or captured, but its operation did not"):
        ask(engine, steered=True, captured=RUNS[name].captured, ended=ended)
    assert not ended
    with pytest.raises(MorfiError):  # what is broken stays so
        ask(engine, steered=False, captured=False)
