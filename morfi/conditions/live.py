"""One engine that serves a series' checkpoints one after another."""

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
    """Which checkpoint the engine serves; those that it could not are named in `failures`."""

    engine: Engine
    open: Callable[[AnyCondition], Checkpoint]  # such as `Series.open`
    progress: Progress
    served: Checkpoint | None  # None after a failure
    load_s: float = 0.0  # merging the last adapter and swapping the weights
    failures: list[str] = field(default_factory=list)

    def load(self, condition: AnyCondition) -> Checkpoint | None:
        """The checkpoint of `condition`, served from now on; None where it cannot be, said in `failures`."""
        begun = time.monotonic()
        self.progress.phase(condition.label)
        try:
            checkpoint = self.open(condition)
            if self.served is None or checkpoint.sha256 != self.served.sha256:
                self.engine.load_checkpoint(checkpoint)
        except MorfiError as error:
            self.failures.append(f"{condition.label}: {error}")
            self.progress.phase(f"failed: {self.failures[-1]}")
            self.served = None
            return None
        self.served, self.load_s = checkpoint, time.monotonic() - begun
        return checkpoint
