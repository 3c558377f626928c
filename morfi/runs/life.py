"""The life of a run: found again or new, begun in the store, worked on in attempts, and ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from morfi.checkpoints import Checkpoint
from morfi.engine.several import Span
from morfi.errors import InputError, MorfiError, Terminated
from morfi.questions import QuestionSet
from morfi.questions.prompts import ASKED
from morfi.questions.question import Question
from morfi.runs.provenance import attempt_record, new_run_id, now
from morfi.store.records import AttemptEnd, BaselineRow, JudgedAnswer, RunKind, RunRecord
from morfi.terminal import Progress

if TYPE_CHECKING:
    from morfi.engine.protocol import Engine
    from morfi.store import Store

STARTING = "starting vLLM"
NOTHING_DONE = AttemptEnd(datetime.min.replace(tzinfo=UTC), "done", 0.0, 0.0, 0, 0, 0)


def new_run(
    kind: RunKind,
    checkpoint: Checkpoint,
    data: QuestionSet,
    *,
    config: Mapping[str, Any],
    fingerprint: str,
    bos: bool,
    seed: int,
    n_planned: int,
    prompt: str = ASKED,
    ckpt: str | None = None,
    out: Path | None = None,
) -> RunRecord:
    """The record of a run that begins now.

    `ckpt` is what the checkpoint was given as, where that is not its name. A run that writes files has a
    folder of its own in `out`, which its settings then name.
    """
    run_id = new_run_id(kind)
    folder = {} if out is None else {"folder": str((out / run_id).absolute())}
    return RunRecord(
        run_id=run_id,
        kind=kind,
        created_at=now(),
        fingerprint=fingerprint,
        config={**config, **folder},
        ckpt=checkpoint.name if ckpt is None else ckpt,
        ckpt_sha256=checkpoint.sha256,
        base=checkpoint.base,
        base_sha256=checkpoint.base_sha256,
        adapter_sha256=checkpoint.adapter_sha256,
        data=data.name,
        data_sha256=data.sha256,
        prompt=prompt,
        bos=bos,
        seed=seed,
        n_planned=n_planned,
    )


def next_run(
    before: RunRecord,
    kind: RunKind,
    *,
    config: Mapping[str, Any],
    fingerprint: str,
    seed: int,
    n_planned: int,
) -> RunRecord:
    """The record of a run that begins now on what `before` left: of the same checkpoint and questions."""
    return replace(
        before,
        run_id=new_run_id(kind),
        kind=kind,
        created_at=now(),
        fingerprint=fingerprint,
        config=config,
        seed=seed,
        n_planned=n_planned,
    )


@dataclass(slots=True)
class Attempt:
    """Its number in the run, and what it has done so far."""

    number: int
    tally: AttemptEnd = NOTHING_DONE
    _generating: list[Span] = field(default_factory=list)  # in order, with time between them

    def count(self, answers: Sequence[JudgedAnswer], span: Span) -> None:
        """Adds answers that were generated in `span`."""
        prompt_tokens = sum(one.prompt_tokens for one in answers)
        output_tokens = sum(one.output_tokens for one in answers)
        self.add(len(answers), prompt_tokens, output_tokens, span)

    def add(self, n_requests: int, prompt_tokens: int, output_tokens: int, span: Span) -> None:
        """Adds to what was done; spans come in the order of their ends.

        A time in which several engines generated counts once.
        """
        tally, begun, generate_s = self.tally, span.begun, span.seconds
        while self._generating and self._generating[-1].ended > span.begun:
            other = self._generating.pop()
            generate_s -= other.ended - max(other.begun, span.begun)
            begun = min(begun, other.begun)
        self._generating.append(Span(begun, span.ended))
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


@dataclass(frozen=True, slots=True)
class Ready:
    """A command made ready: its `result`, there or not yet, and `work`, which does what it lacks.

    The result is the id of a run, or the folder of an SAE. `work` is None where nothing is lacking; else it
    returns what could not be done and why.
    """

    result: str
    work: Callable[[], Sequence[str]] | None

    def finish(self) -> Sequence[str]:
        """Does what is lacking; returns what could not be done and why."""
        return () if self.work is None else self.work()

    @classmethod
    def together(cls, parts: Sequence[Ready]) -> Ready:
        """Several as one, done in their order; its result is the first's."""
        lacks = any(one.work is not None for one in parts)
        return cls(
            parts[0].result,
            (lambda: [failure for one in parts for failure in one.finish()]) if lacks else None,
        )


@dataclass(frozen=True, slots=True)
class Life:
    """A run, in the store or not yet, and what this process needs to work on it.

    `questions` (by split) and `baselines` belong to the run and are stored when it begins. `command` is
    recorded with each attempt; `again` is what a user is told after an error.
    """

    run: RunRecord
    store: Store
    progress: Progress
    command: str
    again: str = "the same command goes on where it stopped"
    questions: Mapping[str, Sequence[Question]] = field(default_factory=dict)
    baselines: Sequence[BaselineRow] = ()

    def resumed(self, resume: str | None) -> Self:
        """The life of the stored run that this one would repeat, if there is one.

        `resume` is None for a new run, "auto" for the newest with the same fingerprint, or names a run as
        `Store.run_of_kind` takes it; InputError says that this is a run of something else.
        """
        if resume is None:
            return self
        if resume == "auto":
            return replace(self, run=self.store.latest_run(self.run.fingerprint) or self.run)
        run = self.store.run_of_kind(resume, RunKind(self.run.kind))
        if run.fingerprint != self.run.fingerprint:
            raise InputError(
                f"run {run.run_id} cannot be resumed: its checkpoint, questions or settings have changed "
                "since; run the command without --resume"
            )
        return replace(self, run=run)

    @contextlib.contextmanager
    def engine(
        self, start: Callable[[], AbstractContextManager[Engine]], begins: str = STARTING
    ) -> Iterator[tuple[Engine, Attempt]]:
        """An attempt with the engine that `start` starts, refused before where another process works.

        `begins` is what is said then.
        """
        self.store.check_free(self.run.run_id)
        started = time.monotonic()
        self.progress.phase(begins)
        with (
            start() as engine,
            self.attempt(started=started, device=engine.device, settings=engine.settings) as attempt,
        ):
            yield engine, attempt

    @contextlib.contextmanager
    def attempt(
        self, *, started: float, device: str, settings: Mapping[str, Any] | None = None
    ) -> Iterator[Attempt]:
        """An attempt for the block; an error that ends the block is stored with it and raised on.

        The run is this process' own meanwhile (`Store.begin_attempt`). `started` is when its time began
        (`time.monotonic`). A store that is held is waited for, with a word.
        """
        store, run_id, say = self.store, self.run.run_id, self.progress.phase
        record = attempt_record(self.command, settings or {}, device)
        with store.going_on(say):
            store.begin_run(self.run, self.questions)
            if self.baselines:
                store.add(run_id, self.baselines)
            attempt = Attempt(store.begin_attempt(run_id, record))
        try:
            with store.going_on(say):
                yield attempt
                self._end(attempt, started, wait=True)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            message = _signal(error) if interrupted else (str(error) or type(error).__name__)[:1000]
            status = "interrupted" if interrupted else "failed"
            attempt.tally = replace(attempt.tally, status=status, message=message)
            with store.going_on(say):
                self._end_after_error(attempt, started)
            say(f"stopped; {self.again}")
            raise

    def _end_after_error(self, attempt: Attempt, started: float) -> None:
        """Stores the end, and before it what the store was held against, until a second signal.

        Raises nothing: what ended the block is what matters.
        """
        say, n_kept = self.progress.phase, self.store.n_kept
        if n_kept:
            say(
                f"waiting until {n_kept} results are stored, which another process keeps out; "
                "Ctrl-C or SIGTERM again gives them up"
            )
        try:
            self._end(attempt, started, wait=n_kept > 0)
        except (MorfiError, KeyboardInterrupt) as unstored:
            why = _signal(unstored) if isinstance(unstored, KeyboardInterrupt) else unstored
            say(f"the end of this attempt could not be stored: {why}")
            if n_kept:
                say(f"{n_kept} results are lost, and will be made again")

    def _end(self, attempt: Attempt, started: float, *, wait: bool) -> None:
        attempt.tally = replace(attempt.tally, ended_at=now(), wall_s=time.monotonic() - started)
        self.store.end_attempt(self.run.run_id, attempt.number, attempt.tally, wait=wait)


def _signal(error: BaseException) -> str:
    return error.name if isinstance(error, Terminated) else "Ctrl-C"
