"""One engine that serves a train run's checkpoints one after another."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from morfi.checkpoints import Checkpoint
from morfi.conditions.trained import open_checkpoint
from morfi.engine.protocol import Engine
from morfi.errors import MorfiError
from morfi.store.records import CheckpointRow
from morfi.terminal import Progress


@dataclass(slots=True)
class Serving:
    """Which checkpoint the engine serves; those that it could not are named in `failures`."""

    engine: Engine
    base: Checkpoint
    progress: Progress
    served: Checkpoint | None  # None after a failure
    load_s: float = 0.0  # merging the last adapter and swapping the weights
    failures: list[str] = field(default_factory=list)

    def load(self, row: CheckpointRow | None) -> Checkpoint | None:
        """The checkpoint of `row` (None: the base model), served from now on; None adds to `failures`."""
        begun = time.monotonic()
        name = checkpoint_name(row)
        self.progress.phase(name)
        try:
            checkpoint = self.base if row is None else open_checkpoint(row, self.base)
            if self.served is None or checkpoint.sha256 != self.served.sha256:
                self.engine.load_checkpoint(checkpoint)
        except MorfiError as error:
            self.failures.append(f"{name}: {error}")
            self.progress.phase(f"failed: {self.failures[-1]}")
            self.served = None
            return None
        self.served, self.load_s = checkpoint, time.monotonic() - begun
        return checkpoint


def checkpoint_name(row: CheckpointRow | None) -> str:
    """What people call the checkpoint; None is the base model."""
    return "base model" if row is None else f"D_{row.level}, seed {row.seed}, epoch {row.epoch_setting}"
