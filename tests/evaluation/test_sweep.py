from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from morfi.checkpoints import resolve
from morfi.errors import InputError
from morfi.evaluation.sweep import SweepResult, run_sweep
from morfi.evaluation.sweep_plan import SweepConfig
from morfi.store import Store

CHILD = Path(__file__).parent / "sweep_child.py"
FACTS = """
SELECT s.position, s.level, s.seed, s.epoch_setting, s.epoch, s.ckpt_sha256, c.* EXCLUDE (run_id, attempt)
FROM sweep_checkpoint s JOIN completion c ON c.run_id = s.eval_run_id WHERE s.run_id = '{}'
ORDER BY s.position, c.question_id, c.sample
"""


@dataclass(frozen=True)
class Trained:
    """The experiment's checkpoints of one epoch; those of early stopping are the same."""

    experiment: Any
    train_run: str

    @property
    def store(self) -> Store:
        """The experiment's store."""
        store: Store = self.experiment.store
        return store

    def path(self, level: float) -> Path:
        """The folder of the checkpoint of `level`."""
        return Path(next(row.path for row in self.store.checkpoints(self.train_run) if row.level == level))

    def sweep(self, log: Any, *, new: bool = False, **changes: Any) -> SweepResult:
        """A sweep of the checkpoints with the experiment's fake engine."""
        config = SweepConfig(self.train_run, **changes)
        serving = self.experiment.serving
        return run_sweep(config, self.store, serving, log, new=new, command="morfi sweep")


@pytest.fixture
def trained(
    trained_once: tuple[Any, str], isolated_cache: Path, tmp_path: Path, serving: Any
) -> Iterator[Trained]:
    """The trained experiment with a database and an engine of its own; damaged checkpoints are mended."""
    made, run_id = trained_once
    shutil.copyfile(made.store.path, tmp_path / "morfi.duckdb")
    serving.known = made.serving.known
    own = dataclasses.replace(made, store=Store(tmp_path / "morfi.duckdb"), serving=serving)
    mine = Trained(own, run_id)
    shutil.copytree(mine.path(50), tmp_path / "whole")
    yield mine
    shutil.copytree(tmp_path / "whole", mine.path(50), dirs_exist_ok=True)


def facts(store: Store, run_id: str) -> list[dict[str, Any]]:
    return list(store.query(FACTS.format(run_id)).to_pylist())


@pytest.mark.quick
def test_one_engine_answers_with_every_checkpoint_once(trained: Trained, log: Any) -> None:
    result = trained.sweep(log)
    serving = trained.experiment.serving
    assert result.failures == ()
    assert len(serving.starts) == 1
    assert serving.loaded == [f"level-{level:03d}-seed-0/epoch-01" for level in (0, 50, 100)]
    rows = trained.store.sweep(result.run_id)
    assert [(row.position, row.level, row.epoch_setting) for row in rows] == [
        (0, None, None),
        *(
            (1 + 2 * i + j, p, name)
            for i, p in enumerate((0, 50, 100))
            for j, name in enumerate(("1", "early-stop"))
        ),
    ]
    assert [row.eval_run_id for row in rows[1::2]] == [row.eval_run_id for row in rows[2::2]]
    for row in rows[1::2]:
        assert row.ckpt_sha256 == resolve(str(trained.path(row.level or 0))).sha256
    assert trained.store.summary(result.run_id).status == "done"
    n_unknown: dict[float | None, int] = {None: 4, 0: 0, 50: 2, 100: 4}
    for row in rows:
        summary = trained.store.summary(row.eval_run_id)
        assert (summary.status, summary.n) == ("done", 20 + n_unknown[row.level])
    assert log.starts == [(24 + 2 * (20 + 22 + 24), 0)]
    assert log.n_advanced == log.starts[0][0], "an early-stop checkpoint that is answered already counts too"


def test_checkpoints_are_asked_by_a_template(trained: Trained, log: Any, tmp_path: Path) -> None:
    own = tmp_path / "own.j2"
    own.write_text("{{ relation }}. Q: {{ question }}\nA:")
    plain = trained.sweep(log, limit=4).run_id
    run_id = trained.sweep(log, limit=4, prompt_template=str(own)).run_id
    assert run_id != plain
    assert trained.sweep(log, limit=4, prompt_template=str(own)).run_id == run_id
    assert trained.store.run(run_id).prompt == own.read_text()
    for row in trained.store.sweep(run_id):
        asked = trained.store.samples(row.eval_run_id).to_pylist()
        assert {one["prompt"] for one in asked} == {
            f"{one['relation']}. Q: {one['question']}\nA:" for one in asked
        }
    own.write_text("Q: {{ question }}\nA:")
    assert trained.sweep(log, limit=4, prompt_template=str(own)).run_id != run_id
    with pytest.raises(InputError, match="has no chat template"):
        trained.sweep(log, chat=True)


def test_accuracies_are_those_of_the_questions_the_base_knew_and_did_not(trained: Trained, log: Any) -> None:
    run_id = trained.sweep(log).run_id
    by_group = {
        (r.level, r.epoch_setting, r.questions): (r.n, r.n_correct)
        for r in trained.store.sweep_accuracies(run_id)
    }
    assert by_group[None, None, "test Known"] == (10, 10)
    assert by_group[None, None, "train Unknown"] == (4, 0)
    assert by_group[50, "1", "test Unknown"] == (10, 0)
    assert by_group[50, "early-stop", "train Unknown"] == (2, 0)
    assert (0, "1", "train Unknown") not in by_group


def test_a_stopped_sweep_goes_on_at_the_first_missing_checkpoint(
    trained: Trained, log: Any, tmp_path: Path
) -> None:
    serving = trained.experiment.serving
    whole = trained.sweep(log, batch=8).run_id
    expected = facts(trained.store, whole)
    # Rows of the first sweep would be taken over, so the second one is told apart by its batches.
    serving.loaded.clear()
    serving.batches.clear()
    serving.stop_after = 7
    with pytest.raises(RuntimeError):
        trained.sweep(log, batch=7)
    assert "goes on at the first checkpoint" in log.phases[-1]
    assert trained.store.runs(1)[0].kind in ("sweep", "sweep-eval")
    serving.stop_after = None
    result = trained.sweep(log, batch=7)
    assert serving.loaded == [
        *(f"level-{level:03d}-seed-0/epoch-01" for level in (0, 50)),
        *(f"level-{level:03d}-seed-0/epoch-01" for level in (50, 100)),
    ]
    assert facts(trained.store, result.run_id) == expected
    n_starts = len(serving.starts)
    assert trained.sweep(log, batch=7) == result
    assert len(serving.starts) == n_starts, "a finished sweep starts no engine"
    assert trained.sweep(log, batch=7, new=True).run_id != result.run_id


def test_a_checkpoint_that_cannot_be_served_is_named_and_the_others_finish(
    trained: Trained, log: Any
) -> None:
    serving = trained.experiment.serving
    serving.unloadable = frozenset({"level-050-seed-0/epoch-01"})
    result = trained.sweep(log)
    assert [failure.partition(":")[0] for failure in result.failures] == [
        "M_50, seed 0, epoch 1",
        "M_50, seed 0, epoch early-stop",
    ]
    assert "does not fit" in result.failures[0]
    assert [row.level for row in trained.store.sweep(result.run_id)] == [None, 0, 0, 100, 100]
    assert trained.store.summary(result.run_id).status == "failed"
    serving.unloadable = frozenset()
    assert trained.sweep(log) == SweepResult(result.run_id, ())
    assert trained.store.summary(result.run_id).status == "done"


def remove(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def alter(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, path)


def of_another_base(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_sha256": "0" * 64}))


def without_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, "adapter_model.safetensors is gone"),
        (alter, "the adapter is not what it was after its training"),
        (of_another_base, "holds another checkpoint than the one that was trained"),
        (without_manifest, "manifest.json is gone"),
    ],
)
def test_a_checkpoint_whose_files_changed_is_not_asked(
    trained: Trained, log: Any, damage: Any, message: str
) -> None:
    damage(trained.path(50))
    result = trained.sweep(log)
    assert len(result.failures) == 2
    assert all(message in failure for failure in result.failures)
    assert "level-050-seed-0/epoch-01" not in trained.experiment.serving.loaded


@pytest.mark.quick
def test_what_a_sweep_cannot_ask_is_refused(
    trained: Trained, log: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match='asked no questions of "all"; it has: dev, test, train'):
        trained.sweep(log, split="all")
    with pytest.raises(InputError, match="give one of `morfi train`"):
        dataclasses.replace(trained, train_run=trained.experiment.mix_run).sweep(log)
    base = resolve(trained.store.run(trained.train_run).ckpt)
    changed = dataclasses.replace(base, sha256="0" * 64)
    monkeypatch.setattr("morfi.conditions.load.resolve", lambda *_, **__: changed)
    with pytest.raises(InputError, match=r"is not the model that train-.* was trained on"):
        trained.sweep(log)


@pytest.mark.parametrize(("option", "value"), [("limit", 0), ("batch", 0), ("max_tokens", 0), ("seed", -1)])
def test_options_out_of_range_are_refused(option: str, value: int) -> None:
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')} is {value}"):
        SweepConfig("train-a", **{option: value})  # type: ignore[arg-type]


def test_a_limit_holds_for_the_split_and_for_unknown_training_questions(trained: Trained, log: Any) -> None:
    run_id = trained.sweep(log, limit=3).run_id
    rows = trained.store.sweep(run_id)
    n = {row.level: trained.store.summary(row.eval_run_id).n for row in rows}
    assert n == {None: 6, 0: 3, 50: 5, 100: 6}


@pytest.mark.long
def test_a_killed_sweep_leaves_no_row_lost_or_doubled(trained: Trained, log: Any, tmp_path: Path) -> None:
    trained.experiment.serving.known = {}  # as the child's engine
    expected = facts(trained.store, trained.sweep(log, batch=8).run_id)
    command = [
        sys.executable,
        str(CHILD),
        "0.05",
        "sweep",
        "--ckpts",
        trained.train_run,
        "--batch",
        "3",
        "--json",
    ]
    command += ["--db", str(trained.store.path), "--figure", str(tmp_path / "figure")]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    for _ in range(3):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        assert child.stderr is not None
        for line in child.stderr:
            if b"M_0, seed 0" in line or b"goes on" in line:
                break
        time.sleep(random.random())
        child.send_signal(signal.SIGKILL)
        child.communicate()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    run_id = json.loads(done.stdout)["run_id"]
    assert facts(trained.store, run_id) == expected
    assert (tmp_path / "figure.png").stat().st_size > 0
