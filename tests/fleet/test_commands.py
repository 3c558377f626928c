"""What commands store by several engines, some of which are lost, is what they store by one."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from losing_engines import LosingEngines

from morfi.engine.protocol import Engine
from morfi.engine.several import Done
from morfi.engine.shards import read_shards
from morfi.evaluation.split import SplitConfig, run_split
from morfi.evaluation.sweep import run_sweep
from morfi.evaluation.sweep_plan import SweepConfig
from morfi.interventions import SteerConfig, run_steer
from morfi.latents.capture import CaptureConfig, run_capture
from morfi.store import Store

SWEPT = """
SELECT s.position, s.ckpt_sha256, c.* EXCLUDE (run_id, attempt)
FROM sweep_checkpoint s JOIN completion c ON c.run_id = s.eval_run_id WHERE s.run_id = '{}' ORDER BY ALL
"""
DIRECTIONS = "SELECT * EXCLUDE (run_id) FROM steer_direction WHERE run_id = '{}' ORDER BY ALL"
ANSWERS = "SELECT * EXCLUDE (run_id, attempt) FROM {} WHERE run_id = '{}' ORDER BY ALL"

pytestmark = pytest.mark.usefixtures("isolated_cache")


def every(n: int) -> Callable[[], bool]:
    """Says at every call of this number that an engine is lost."""
    number = itertools.count(1)
    return lambda: next(number) % n == 0


def rows(store: Store, query: str) -> list[dict[str, Any]]:
    return list(store.query(query).to_pylist())


def copied(store: Store) -> Store:
    """The store as it is now, in a file of its own."""
    path = store.path.with_name("copy.duckdb")
    shutil.copyfile(store.path, path)
    return Store(path)


def test_a_split(tmp_path: Path, tiny_model: Path, data_file: Path, serving: Any, log: Any) -> None:
    config = SplitConfig(str(tiny_model), data=str(data_file), n_ex=2, shots=2, samples=2, batch=4)
    several = LosingEngines(serving, n=3, is_lost=every(5))
    found = []
    for name, start in (("one", serving), ("several", several)):
        store = Store(tmp_path / name)
        run_id = run_split(config, store, start, log, new=False, command="")
        found.append(rows(store, ANSWERS.format("completion", run_id)))
        assert store.summary(run_id).status == "done"
    assert several.n_lost
    assert found[0] == found[1]
    (end,) = rows(store, "FROM attempt_end")
    assert end["wall_s"] >= end["generate_s"] > 0


def test_a_sweep(own_experiment: Any, log: Any) -> None:
    experiment, train_run = own_experiment
    several, other = LosingEngines(experiment.serving, is_lost=every(5)), copied(experiment.store)
    config = SweepConfig(train_run, batch=5)
    one = run_sweep(config, experiment.store, experiment.serving, log, new=False, command="")
    result = run_sweep(config, other, several, log, new=False, command="")
    assert several.n_lost
    assert result.failures == ()
    assert rows(other, SWEPT.format(result.run_id)) == rows(experiment.store, SWEPT.format(one.run_id))
    assert all(run.status == "done" for run in other.runs(100))
    assert log.n_advanced == sum(total for total, _ in log.starts)


def test_a_sweep_with_a_checkpoint_that_cannot_be_served(own_experiment: Any, log: Any) -> None:
    experiment, train_run = own_experiment
    experiment.serving.unloadable = frozenset({"level-050-seed-0/epoch-01"})
    several = LosingEngines(experiment.serving, is_lost=lambda: False)
    result = run_sweep(SweepConfig(train_run, batch=5), experiment.store, several, log, new=False, command="")
    assert len(result.failures) == 2
    assert all("epoch-01 does not fit" in failure for failure in result.failures)
    assert [row.level for row in experiment.store.sweep(result.run_id)] == [None, 0, 0, 100, 100]


def test_a_checkpoint_that_failed_before_its_second_place_was_opened_is_named_twice(
    own_experiment: Any, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_begun_first(engine: Engine, groups: Any, work: Any, _: Any) -> Iterator[Done[Any, Any]]:
        later: list[Any] = []
        for group in groups:
            later += group[1:]
            yield from (Done(unit, work(engine, unit)) for unit in group[:1])
        yield from (Done(unit, work(engine, unit)) for unit in later)

    monkeypatch.setattr("morfi.evaluation.sweep.share_out", all_begun_first)
    experiment, train_run = own_experiment
    serving = experiment.serving
    serving.unloadable = frozenset({"level-050-seed-0/epoch-01"})
    result = run_sweep(SweepConfig(train_run, batch=5), experiment.store, serving, log, new=False, command="")
    assert len(result.failures) == 2
    assert [row.level for row in experiment.store.sweep(result.run_id)] == [None, 0, 0, 100, 100]


def test_a_capture(own_experiment: Any, tmp_path: Path, log: Any) -> None:
    experiment, train_run = own_experiment
    several = LosingEngines(experiment.serving, is_lost=every(5))
    alone = LosingEngines(experiment.serving, n=1, is_lost=lambda: False)
    store, found = experiment.store, []
    for start in (alone, several):
        config = CaptureConfig(train_run, (0, 1))
        run_id = run_capture(config, store, start, tmp_path, log, new=True, command="").run_id
        assert not list(tmp_path.glob("*/.*")), "an engine that was lost leaves no part of a folder"
        found.append({row.position: row for row in store.captured(run_id)})
    assert several.n_lost
    assert list(found[0]) == list(found[1])
    for one, other in zip(found[0].values(), found[1].values(), strict=True):
        assert one.files == other.files
        assert list(read_shards(Path(one.path)))


def test_a_steering(steerable: tuple[Store, str], knowing: Any, log: Any) -> None:
    store, find_run = steerable
    several, other = LosingEngines(knowing, is_lost=every(17)), copied(store)
    config = SteerConfig(find_run, "M_100", controls=2, random=1, alphas=(-2.0, -1.0, 1.0), batch=8)
    one = run_steer(config, store, knowing, log, new=False, command="")
    run_id = run_steer(config, other, several, log, new=False, command="")
    assert several.n_lost
    for query in (ANSWERS.format("steered_answer", "{}"), DIRECTIONS):
        assert rows(other, query.format(run_id)) == rows(store, query.format(one))
    assert log.n_advanced == sum(total for total, _ in log.starts)
