"""A run is found again or new, and an attempt at it ends in the store as the block did."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from morfi.checkpoints import Checkpoint
from morfi.engine.several import Span
from morfi.errors import InputError, Terminated
from morfi.questions import QuestionSet
from morfi.runs.life import Attempt, Life, new_run, next_run
from morfi.store import Store
from morfi.store.records import RunKind, RunRecord

CHECKPOINT = Checkpoint("m", Path("m"), "c" * 64, "b", "b" * 64, "a" * 64, "float32")
DATA = QuestionSet("facts", "d" * 64, {})


def record(**changes: Any) -> RunRecord:
    return new_run(
        RunKind.EVAL,
        CHECKPOINT,
        DATA,
        **{"config": {"x": 1}, "fingerprint": "f", "bos": True, "seed": 3, "n_planned": 7, **changes},
    )


class Ended:
    """A store that keeps how attempts ended, and a progress that keeps what was said."""

    def __init__(self, held: bool = False) -> None:
        self.ends: list[Any] = []
        self.said: list[str] = []
        self.held = held
        self.begun: list[str] = []
        self.n_kept = 0

    def going_on(self, say: Any) -> Any:
        return contextlib.nullcontext()

    def check_free(self, run_id: str) -> None:
        assert self.begun == []

    def begin_run(self, run: Any, questions: Any) -> None:
        self.begun.append(run.run_id)

    def add(self, run_id: str, rows: Any) -> None:
        assert (rows, self.begun) == ((), ["run"])

    def begin_attempt(self, run_id: str, record: Any) -> int:
        return 4

    def end_attempt(self, run_id: str, number: int, end: Any, *, wait: bool) -> None:
        assert (run_id, number) == ("run", 4)
        assert wait is (end.status == "done" or end.message.startswith("M_"))
        if self.held:
            raise InputError("locked by PID 7")
        self.ends.append(end)

    def phase(self, text: str) -> None:
        self.said.append(text)

    def start(self, n_total: int, n_done: int, unit: str) -> None: ...

    def advance(self, n: int) -> None: ...


def life(ended: Any) -> Life:
    return Life(replace(record(), run_id="run"), ended, ended, "morfi eval", again="do this")


def answers(*tokens: int) -> list[Any]:
    return [SimpleNamespace(prompt_tokens=10, output_tokens=n) for n in tokens]


def test_what_was_done_is_added_up() -> None:
    ended: Any = Ended()
    with life(ended).attempt(started=time.monotonic() - 5, device="cpu") as attempt:
        attempt.count(answers(1, 2), Span(1, 1.5))
        attempt.add(3, 30, 3, Span(2, 2.25))
        attempt.fail([])
    (end,) = ended.ends
    assert attempt.tally == end
    assert (end.n_requests, end.prompt_tokens, end.output_tokens, end.generate_s) == (5, 50, 6, 0.75)
    assert (end.status, end.message, ended.said) == ("done", None, [])
    assert 5 <= end.wall_s < 60


def test_a_time_in_which_several_engines_generate_counts_once() -> None:
    attempt = Attempt(1)
    for begun, ended in ((0, 4), (2, 5), (6, 8), (1, 9), (8, 10)):
        attempt.add(1, 1, 1, Span(begun, ended))
    assert attempt.tally.generate_s == 10


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), "interrupted", "Ctrl-C"),
        (Terminated(15, "SIGTERM"), "interrupted", "SIGTERM"),
        (ValueError("x" * 2000), "failed", "x" * 1000),
        (MemoryError(), "failed", "MemoryError"),
    ],
)
def test_an_error_ends_it_and_is_raised_on(error: BaseException, status: str, message: str) -> None:
    ended = Ended()

    def run() -> None:
        with life(ended).attempt(started=time.monotonic(), device="cpu") as attempt:
            attempt.count(answers(1), Span(0, 0.1))
            raise error

    with pytest.raises(type(error)):
        run()
    (end,) = ended.ends
    assert (end.status, end.message, end.n_requests) == (status, message, 1)
    assert ended.said == ["stopped; do this"]


def test_parts_that_failed_are_named() -> None:
    ended: Any = Ended()
    with life(ended).attempt(started=time.monotonic(), device="cpu") as attempt:
        attempt.fail(["M_0 is gone", "M_50 too"])
    assert (ended.ends[0].status, ended.ends[0].message) == ("failed", "M_0 is gone; M_50 too")


def test_an_end_that_cannot_be_stored_hides_no_error() -> None:
    ended: Any = Ended(held=True)

    def run() -> None:
        with life(ended).attempt(started=0.0, device="cpu"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert ended.said == [
        "the end of this attempt could not be stored: locked by PID 7",
        "stopped; do this",
    ]


def test_an_engine_is_started_for_a_run_that_is_free_and_then_the_run_begins() -> None:
    ended: Any = Ended()

    @contextlib.contextmanager
    def start() -> Any:
        assert ended.begun == []
        yield SimpleNamespace(settings={"dtype": "float32"}, device="cpu")

    with life(ended).engine(start) as (engine, attempt):
        assert (engine.device, attempt.number, ended.begun) == ("cpu", 4, ["run"])
    assert ended.said == ["starting vLLM"]
    assert [end.status for end in ended.ends] == ["done"]


def test_a_run_is_of_its_checkpoint_and_questions_and_the_next_one_of_the_same(tmp_path: Path) -> None:
    run = record(ckpt="given", out=tmp_path)
    assert run.run_id.startswith("eval-")
    assert run.config == {"x": 1, "folder": str(tmp_path / run.run_id)}
    assert (run.ckpt, run.base, run.adapter_sha256, run.data) == ("given", "b", "a" * 64, "facts")
    after = next_run(run, RunKind.MIX, config={}, fingerprint="g", seed=1, n_planned=2)
    assert after.run_id.startswith("mix-")
    same = {name: getattr(run, name) for name in ("ckpt", "ckpt_sha256", "base", "data_sha256", "bos")}
    assert same == {name: getattr(after, name) for name in same}
    assert (after.kind, after.config, after.fingerprint, after.n_planned) == ("mix", {}, "g", 2)


def test_a_run_goes_on_where_the_same_was_begun(tmp_path: Path, log: Any) -> None:
    store = Store(tmp_path / "morfi.duckdb")
    begun = record(fingerprint="same")
    assert Life(begun, store, log, "").resumed("auto").run is begun, "there is no store yet"
    store.begin_run(begun, {})
    store.begin_run(other := record(fingerprint="other"), {})
    wanted = Life(record(fingerprint="same"), store, log, "")
    assert wanted.resumed(None) is wanted
    assert wanted.resumed("auto").run == begun
    assert wanted.resumed(begun.run_id[:-1]).run == begun
    with pytest.raises(InputError, match=f"run {other.run_id} cannot be resumed: its checkpoint"):
        wanted.resumed(other.run_id)


def test_the_kind_of_a_run_is_stored_as_its_name(tmp_path: Path) -> None:
    store = Store(tmp_path / "morfi.duckdb")
    store.begin_run(run := record(), {})
    assert store.query("SELECT kind FROM run").to_pylist() == [{"kind": "eval"}]
    assert store.run_of_kind(run.run_id, RunKind.EVAL).kind == RunKind.EVAL
