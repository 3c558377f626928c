"""An attempt ends in the store as the block did."""

from __future__ import annotations

import contextlib
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from morfi.errors import InputError, Terminated
from morfi.runs.attempts import attempting

if TYPE_CHECKING:
    from morfi.store import Store
    from morfi.store.records import AttemptRecord


RECORD = cast("AttemptRecord", None)  # the store below keeps none


class Ended:
    """A store that keeps how attempts ended, and a progress that keeps what was said."""

    def __init__(self, held: bool = False) -> None:
        self.ends: list[Any] = []
        self.said: list[str] = []
        self.held = held
        self.n_kept = 0

    def going_on(self, say: Any) -> Any:
        return contextlib.nullcontext()

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

    def start(self, n_total: int, n_done: int) -> None: ...

    def advance(self, n: int) -> None: ...


def answers(*tokens: int) -> list[Any]:
    return [SimpleNamespace(prompt_tokens=10, output_tokens=n) for n in tokens]


def test_what_was_done_is_added_up() -> None:
    ended: Any = Ended()
    with attempting(ended, "run", RECORD, ended, started=time.monotonic() - 5) as attempt:
        attempt.count(answers(1, 2), 0.5)
        attempt.add(3, 30, 3, 0.25)
        attempt.fail([])
    (end,) = ended.ends
    assert attempt.tally == end
    assert (end.n_requests, end.prompt_tokens, end.output_tokens, end.generate_s) == (5, 50, 6, 0.75)
    assert (end.status, end.message, ended.said) == ("done", None, [])
    assert 5 <= end.wall_s < 60


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
        with attempting(
            cast("Store", ended), "run", RECORD, ended, started=time.monotonic(), again="do this"
        ) as attempt:
            attempt.count(answers(1), 0.1)
            raise error

    with pytest.raises(type(error)):
        run()
    (end,) = ended.ends
    assert (end.status, end.message, end.n_requests) == (status, message, 1)
    assert ended.said == ["stopped; do this"]


def test_parts_that_failed_are_named() -> None:
    ended: Any = Ended()
    with attempting(ended, "run", RECORD, None, started=time.monotonic()) as attempt:
        attempt.fail(["M_0 is gone", "M_50 too"])
    assert (ended.ends[0].status, ended.ends[0].message) == ("failed", "M_0 is gone; M_50 too")


def test_an_end_that_cannot_be_stored_hides_no_error() -> None:
    ended: Any = Ended(held=True)

    def run() -> None:
        with attempting(ended, "run", RECORD, ended, started=0.0, again="do this"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()
    assert ended.said == [
        "the end of this attempt could not be stored: locked by PID 7",
        "stopped; do this",
    ]
