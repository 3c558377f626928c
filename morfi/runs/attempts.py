"""An attempt at a run: begun in the store, counted while it lasts, and ended there however it ends."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from morfi.errors import MorfiError, Terminated
from morfi.runs.provenance import now
from morfi.store import Store
from morfi.store.records import AttemptEnd, AttemptRecord, JudgedAnswer
from morfi.terminal import Progress

NOTHING_DONE = AttemptEnd(datetime.min.replace(tzinfo=UTC), "done", 0.0, 0.0, 0, 0, 0)


@dataclass(slots=True)
class Attempt:
    """Its number in the run, and what it has done so far."""

    number: int
    tally: AttemptEnd = NOTHING_DONE

    def count(self, answers: Sequence[JudgedAnswer], generate_s: float) -> None:
        """Adds answers that took so long."""
        prompt_tokens = sum(one.prompt_tokens for one in answers)
        output_tokens = sum(one.output_tokens for one in answers)
        self.add(len(answers), prompt_tokens, output_tokens, generate_s)

    def add(self, n_requests: int, prompt_tokens: int, output_tokens: int, generate_s: float) -> None:
        """Adds to what was done."""
        tally = self.tally
        self.tally = replace(
            tally,
            generate_s=tally.generate_s + generate_s,
            n_requests=tally.n_requests + n_requests,
            prompt_tokens=tally.prompt_tokens + prompt_tokens,
            output_tokens=tally.output_tokens + output_tokens,
        )

    def fail(self, failures: Sequence[str]) -> None:
        """Says what went wrong with parts of the run, if anything did."""
        if failures:
            self.tally = replace(self.tally, status="failed", message="; ".join(failures)[:1000])


@contextlib.contextmanager
def attempting(
    store: Store,
    run_id: str,
    record: AttemptRecord,
    progress: Progress | None,
    *,
    started: float,
    again: str = "the same command goes on where it stopped",
    begin: Callable[[], None] | None = None,
) -> Iterator[Attempt]:
    """An attempt for the block; an error that ends the block is stored with it and raised on.

    The run is this process' own meanwhile (`Store.begin_attempt`). `started` is when its time began
    (`time.monotonic`); `again` is what a user is told after an error. `begin` writes what belongs to the run
    before its attempt; as with all that follows, a store that is held is waited for, with a word.
    """
    say = None if progress is None else progress.phase
    with contextlib.nullcontext() if say is None else store.going_on(say):
        if begin is not None:
            begin()
        attempt = Attempt(store.begin_attempt(run_id, record))
    try:
        with store.going_on(say):
            yield attempt
            _end(store, run_id, attempt, started, wait=True)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        message = _signal(error) if interrupted else (str(error) or type(error).__name__)[:1000]
        status = "interrupted" if interrupted else "failed"
        attempt.tally = replace(attempt.tally, status=status, message=message)
        with store.going_on(say):
            _end_after_error(store, run_id, attempt, started, say or _silent)
        if say is not None:
            say(f"stopped; {again}")
        raise


def _end_after_error(
    store: Store, run_id: str, attempt: Attempt, started: float, say: Callable[[str], None]
) -> None:
    """Stores the end, and before it what the store was held against, until a second signal; raises nothing.

    What ended the block is what matters.
    """
    n_kept = store.n_kept
    if n_kept:
        say(
            f"waiting until {n_kept} results are stored, which another process keeps out; "
            "Ctrl-C or SIGTERM again gives them up"
        )
    try:
        _end(store, run_id, attempt, started, wait=n_kept > 0)
    except (MorfiError, KeyboardInterrupt) as unstored:
        why = _signal(unstored) if isinstance(unstored, KeyboardInterrupt) else unstored
        say(f"the end of this attempt could not be stored: {why}")
        if n_kept:
            say(f"{n_kept} results are lost, and will be made again")


def _silent(_: str) -> None: ...


def _end(store: Store, run_id: str, attempt: Attempt, started: float, *, wait: bool) -> None:
    attempt.tally = replace(attempt.tally, ended_at=now(), wall_s=time.monotonic() - started)
    store.end_attempt(run_id, attempt.number, attempt.tally, wait=wait)


def _signal(error: BaseException) -> str:
    return error.name if isinstance(error, Terminated) else "Ctrl-C"
