"""Which steps of a GPU did what they were to do, without making the host wait for a step in progress."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from morfi.errors import MorfiError
from morfi.serve.plugin.transfers import Fetched


@dataclass(frozen=True, slots=True)
class _Step:
    """A step behind which the layers' numbers are copied to the host."""

    number: int
    layers: tuple[int, ...]  # those that had work
    marks: Fetched  # int32 [n_layers + n_tokens]


class Steps:
    """The steps of one worker that had work, numbered from 1, and whether their work is known to be done.

    A layer whose operation runs writes the step's mark to `ran`. A copy of it follows each step to the host:
    when it has come the step is proven, or no step after it ever is.
    """

    def __init__(
        self, marks: torch.Tensor, n_layers: int | None = None, stream: torch.Stream | None = None
    ) -> None:
        """`marks`: int32 on the device, `ran` of each layer, then what changed each token of a step.

        They are fetched on `stream`, as `Fetched` does it.
        """
        self._marks = marks
        self._stream = stream
        self._n_layers = len(marks) if n_layers is None else n_layers
        self.n_tokens = 0  # of the step that has begun
        self.changed: dict[int, np.ndarray] = {}  # uint16, of each proven step until it is taken
        self._lock = threading.Lock()  # outputs are fetched in another thread
        self._number = 0
        self._open: tuple[int, ...] | None = None  # the layers of the step that has begun
        self._running: deque[_Step] = deque()
        self._proven = 0
        self._failure: str | None = None

    @property
    def last(self) -> int:
        """The number of the last step that had work."""
        return self._number

    @property
    def proven(self) -> int:
        """The number of the last step that is known to have done its work, like all before."""
        return self._proven

    @property
    def mark(self) -> int:
        """The value that a layer writes to `ran` when it does its work in the step that has begun."""
        return _mark(self._number)

    def begin(self, layers: Sequence[int], n_tokens: int = 0) -> None:
        """A step of `n_tokens` follows in which these layers have work; raises MorfiError as `settle`."""
        if self._open is not None:
            self._failure = self._failure or f"step {self._number} was begun, but did not come to its end"
        self.settle()
        self._number += 1
        self._open = tuple(layers)
        self.n_tokens = n_tokens

    def end(self) -> None:
        """All of the step that was begun is on its way."""
        assert self._open is not None
        told = self._marks[: self._n_layers + self.n_tokens].clone()  # the next step's come to the same place
        step = _Step(self._number, self._open, Fetched([told], self._stream))
        self._open = None
        with self._lock:
            self._running.append(step)

    def settle(self) -> None:
        """Looks at the steps that have ended meanwhile; raises MorfiError if one did not do its work."""
        with self._lock:
            while self._running and self._running[0].marks.is_there:
                self._look_at(self._running.popleft())
            if self._failure is not None:
                raise MorfiError(self._failure)

    def prove(self, number: int) -> None:
        """Waits for step `number`; raises MorfiError unless it and all before it did their work."""
        with self._lock:
            awaited = [step.marks for step in self._running if step.number <= number]
        if awaited:
            awaited[-1].wait()
        self.settle()
        if self._proven < number:
            raise MorfiError(f"nothing says that step {number} did its work")

    def _look_at(self, step: _Step) -> None:
        (fetched,) = step.marks.take()
        marks = fetched.numpy()
        missing = [layer for layer in step.layers if marks[layer] != _mark(step.number)]
        if missing and self._failure is None:
            self._failure = (
                f"layer {missing[0]} was to be steered or captured, but its operation did not run in that "
                "step; no answer is given. Start the engine again, with enforce_eager=true if it recurs"
            )
        if self._failure is None:
            # Before others see that it is proven.
            self.changed[step.number] = marks[self._n_layers :].astype(np.uint16)
            self._proven = step.number


def _mark(number: int) -> int:
    """The number of a step as an int32 that is never 0."""
    return (number - 1) % (2**31 - 1) + 1
