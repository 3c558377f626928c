"""vLLM engines of a tiny random model in actors of Ray: what they find is what one engine finds."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from child_process import tagged
from evaluated import facts, run

from morfi.checkpoints import resolve
from morfi.engine.directions import Direction
from morfi.engine.protocol import Engine, Sampling
from morfi.engine.several import share_out
from morfi.engine.shards import ShardRows, read_shards
from morfi.engine.steering import Steering
from morfi.evaluation.config import EvalConfig
from morfi.fleet.ray_engines import cores_of, start_engines
from morfi.latents.capture import CaptureConfig, run_capture
from morfi.serve.engine import start_engine
from morfi.store import Store

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("starts_vllm")]

CONTEXT, D_MODEL, N_TOKENS = 256, 64, 8


def sharing(engine: Any) -> Any:
    """A starter of engines that gives this one every time, with the checkpoint that it is to start on."""

    @contextlib.contextmanager
    def start(checkpoint: Any, *, context: int, **_: Any) -> Iterator[Any]:
        assert context <= CONTEXT
        engine.load_checkpoint(checkpoint)
        yield engine

    return start


@pytest.fixture(scope="module")
def one(served_model: Path) -> Iterator[Engine]:
    """One engine in this process."""
    with start_engine(resolve(str(served_model), dtype="float32"), context=CONTEXT) as engine:
        yield engine


@pytest.fixture(scope="module")
def two(served_model: Path) -> Iterator[Any]:
    """Two engines in actors."""
    checkpoint = resolve(str(served_model), dtype="float32")
    with start_engines(start_engine, 2, checkpoint, context=CONTEXT, seed=0, overrides={}) as pool:
        yield pool


@pytest.fixture(scope="module")
def whole(
    served_config: EvalConfig, one: Engine, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """The rows that one engine leaves."""
    store = Store(tmp_path_factory.mktemp("one") / "morfi.duckdb")
    rows = facts(store, run(served_config, store, sharing(one)))
    assert len({row["text"] for row in rows}) > len(rows) / 2, "equal answers would show nothing"
    return rows


def test_an_evaluation_has_the_rows_of_one_engine(
    served_config: EvalConfig, whole: list[dict[str, Any]], two: Any, tag: str, tmp_path: Path
) -> None:
    store = Store(tmp_path / "morfi.duckdb")
    assert facts(store, run(served_config, store, sharing(two))) == whole
    engines = [pid for pid, name in tagged(tag).items() if name.startswith("ray::EngineActor")]
    assert sorted(sorted(os.sched_getaffinity(pid)) for pid in engines) == [cores_of(i, 2) for i in (0, 1)]


def test_a_capture_has_the_residual_streams_of_one_engine(
    *,
    served_model: Path,
    one: Engine,
    two: Any,
    train_experiment: Any,
    data_file: Path,
    tmp_path: Path,
    log: Any,
) -> None:
    made, train_run = train_experiment(tmp_path / "made", served_model, data_file)
    config, found = CaptureConfig(train_run, (0, 1), dtype="float32"), []
    for name, engine in (("one", one), ("two", two)):
        out = tmp_path / name
        run_id = run_capture(config, made.store, sharing(engine), out, log, new=True, command="").run_id
        captured = made.store.captured(run_id)
        assert len(captured) == 1 + len(made.store.checkpoints(train_run))
        found.append({row.position: list(read_shards(Path(row.path))) for row in captured})
    assert found[0].keys() == found[1].keys()
    for position, shards in found[0].items():
        assert_alike(shards, found[1][position])


def assert_alike(one: Sequence[ShardRows], other: Sequence[ShardRows]) -> None:
    """Equal but for the last bits, since another number of threads splits sums elsewhere."""
    assert len(one) == len(other)
    for rows, others in zip(one, other, strict=True):
        assert rows.layer == others.layer
        for name in ("request", "sample", "position", "token_id"):
            assert torch.equal(getattr(rows, name), getattr(others, name))
        torch.testing.assert_close(rows.values, others.values, rtol=1e-5, atol=1e-5)


def test_steered_answers_are_those_of_one_engine(
    served_model: Path, one: Engine, two: Any, whole: list[dict[str, Any]]
) -> None:
    for engine in (one, two):
        engine.load_checkpoint(resolve(str(served_model), dtype="float32"))  # after what others have loaded
    vector = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1))
    found = [steered(engine, Direction(vector), [row["prompt"] for row in whole]) for engine in (one, two)]
    assert found[0] == found[1]
    n_changed = sum(not row["text"].startswith(found[0][row["prompt"]]) for row in whole)
    assert n_changed > len(whole) / 2


def steered(engine: Engine, direction: Direction, prompts: Sequence[str]) -> dict[str, str]:
    """The answers by prompt, which the tokenizer of single bytes reads, in units of four."""
    units = [prompts[start : start + 4] for start in range(0, len(prompts), 4)]
    wanted = Steering(layer=0, direction=engine.register(direction), strength=4.0)

    def work(each: Engine, unit: Sequence[str]) -> list[str]:
        asked = [[byte + 3 for byte in prompt.encode()] for prompt in unit]
        answers = each.generate(asked, Sampling(max_tokens=N_TOKENS), steering=[[wanted]] * len(unit))
        return [answer.text for (answer,) in answers]

    found: dict[str, str] = {}
    for done in share_out(engine, [units], work, lambda _: None):
        found |= zip(done.unit, done.result, strict=True)
    return found
