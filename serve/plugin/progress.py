"""How far every steered or captured request has come, and what was changed at its positions."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from morfi.serve.plugin.steps import Steps
from morfi.serve.plugin.transfers import Fetched
from morfi.serve.plugin.work import Batch, Captured, Live, Standing


@dataclass(slots=True)
class Note:
    """A step that had work for these requests."""

    batch: Batch
    number: int  # of the step, 0 on a CPU
    changed: np.ndarray | None  # the kernel's report on each row; None where it comes with the step's proof
    captured: list[Captured]
    fetched: Fetched | None = None  # what was captured, and the tokens of all rows


class Progress:
    """The requests of one worker, each in a seat from 1 on, and the steps that they have not been told of."""

    def __init__(self) -> None:
        self._first = np.zeros(16, np.int64)  # by seat: the first position that was computed
        self._reached = np.zeros(16, np.int64)
        self._told = np.zeros(16, np.int64)  # the position up to which is known what changed it
        self._changed = np.zeros((16, 64), np.uint16)  # by seat and position
        self._free = list(range(15, 0, -1))
        self._notes: deque[Note] = deque()
        self._leaving: deque[tuple[int, Live]] = deque()  # and the last step that they may be told of

    def enter(self, live: Live) -> None:
        """Gives a request a seat."""
        if not self._free:
            n = len(self._first)
            self._free = list(range(2 * n - 1, n - 1, -1))
            self._first, self._reached, self._told, self._changed = (
                enlarged(one, 2 * n) for one in (self._first, self._reached, self._told, self._changed)
            )
        live.seat = self._free.pop()

    def leave(self, live: Live) -> None:
        """Frees the request's seat, once it has been told of all steps that have begun."""
        self._leaving.append((self._notes[-1].number if self._notes else 0, live))

    def begin(self, batch: Batch) -> np.ndarray:
        """Takes note of the positions of a step; returns those that its requests had reached before.

        Raises RuntimeError where one has left positions out.
        """
        seats = batch.seats
        reached: np.ndarray = self._reached[seats]
        skipped = (batch.starts > reached) & (reached > 0)
        if skipped.any():
            here = int(np.flatnonzero(skipped)[0])
            raise RuntimeError(f"a request skipped from {reached[here]} to {batch.starts[here]}")
        is_new = reached == 0
        self._first[seats[is_new]] = batch.starts[is_new]
        self._reached[seats] = np.maximum(reached, batch.stops)
        self._reached[0] = 0
        return reached

    def add(self, note: Note) -> None:
        """Keeps a step of which its requests are to be told."""
        self._notes.append(note)

    def tell(self, steps: Steps | None, wait_for: int = 0) -> list[Note]:
        """Tells requests of the steps that are known to have done their work, and returns those.

        A step whose rows are still on their way to the host comes later, unless it is `wait_for` or earlier.
        """
        proven, told = 0 if steps is None else steps.proven, []
        while self._notes and (note := self._notes[0]).number <= proven:
            if note.fetched is not None and not note.fetched.is_there and note.number > wait_for:
                break
            if note.changed is None:
                assert steps is not None
                note.changed = steps.changed.pop(note.number)
            self._tell(note.batch, note.changed)
            told.append(self._notes.popleft())
        while self._leaving and not (self._notes and self._notes[0].number <= self._leaving[0][0]):
            self._free_seat(self._leaving.popleft()[1])
        return told

    def last_step(self, live: Live, n_computed: int | None) -> int:
        """The last step that a request was not told of, 0 for none: one with positions before `n_computed`.

        Without `n_computed`, with any.
        """
        for note in reversed(self._notes):
            here = note.batch.seats == live.seat
            if here.any() and (n_computed is None or note.batch.starts[here][0] < n_computed):
                return note.number
        return 0

    def standing(self, live: Live) -> Standing:
        """How far a request is known to have come."""
        if live.left is not None:
            return live.left
        seat, first = live.seat, int(self._first[live.seat])
        untold = [int(one) for note in self._notes for one in note.batch.starts[note.batch.seats == seat]]
        reached = min([int(self._reached[seat]), *untold])
        self._widen(reached)
        return Standing(first, reached, self._changed[seat, first:reached].tobytes())

    def _tell(self, batch: Batch, changed: np.ndarray) -> None:
        seats, starts, stops = batch.seats, batch.starts, batch.stops
        self._widen(int(stops.max(initial=0)))
        told = self._told[seats]
        # One that was preempted computes positions again; what is known of them stays.
        starts = np.maximum(starts, told)
        counts = np.maximum(stops - starts, 0)
        offsets = np.arange(counts.sum()) - (counts.cumsum() - counts).repeat(counts)
        rows = (batch.first_rows + starts - batch.starts).repeat(counts) + offsets
        self._changed[seats.repeat(counts), starts.repeat(counts) + offsets] = changed[rows]
        self._told[seats] = np.maximum(told, stops)

    def _widen(self, n_positions: int) -> None:
        n_seats, n = self._changed.shape
        if n_positions > n:
            wider = np.zeros((n_seats, max(2 * n, n_positions)), np.uint16)
            wider[:, :n] = self._changed
            self._changed = wider

    def _free_seat(self, live: Live) -> None:
        live.left = self.standing(live)
        seat = live.seat
        self._changed[seat, : self._reached[seat]] = 0
        self._first[seat] = self._reached[seat] = self._told[seat] = 0
        self._free.append(seat)


def enlarged(values: np.ndarray, n: int) -> np.ndarray:
    """The values [m, ...] with zeros behind them: [n, ...]."""
    found = np.zeros((n, *values.shape[1:]), values.dtype)
    found[: len(values)] = values
    return found
