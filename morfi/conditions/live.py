"""Engines that serve a series' checkpoints one after another."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from morfi.checkpoints import Checkpoint
from morfi.conditions.condition import AnyCondition
from morfi.engine.protocol import Engine
from morfi.errors import MorfiError
from morfi.terminal import Progress


@dataclass(slots=True)
class Serving:
    """Which checkpoint of a series each engine serves; those that none could are named in `failures`."""

    open: Callable[[AnyCondition], Checkpoint]  # such as `Series.open`
    progress: Progress
    base: Checkpoint  # that an engine serves when it starts
    failures: list[str] = field(default_factory=list)
    # By its id: the engine, and the sha256 of what it serves; None after a failure.
    _served: dict[int, tuple[Engine, str | None]] = field(default_factory=dict)

    def opened(self, condition: AnyCondition) -> Checkpoint | None:
        """The checkpoint of `condition`; None where it is not fit, said in `failures`."""
        self.progress.phase(condition.label)
        try:
            return self.open(condition)
        except MorfiError as error:
            self.fail(condition, error)
            return None

    def load(self, engine: Engine, checkpoint: Checkpoint) -> float:
        """Has `engine` serve the checkpoint; returns the seconds of merging and swapping.

        Raises MorfiError where it cannot.
        """
        begun = time.monotonic()
        _, served = self._served.get(id(engine), (engine, self.base.sha256))
        if served != checkpoint.sha256:
            self._served[id(engine)] = (engine, None)
            engine.load_checkpoint(checkpoint)
            self._served[id(engine)] = (engine, checkpoint.sha256)
        return time.monotonic() - begun

    def fail(self, condition: AnyCondition, error: MorfiError) -> str:
        """Says why the checkpoint of `condition` cannot be served; returns the line."""
        line = f"{condition.label}: {error}"
        self.failures.append(line)
        self.progress.phase(f"failed: {line}")
        return line
