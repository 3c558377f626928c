"""Which checkpoint a live engine serves: what may be loaded into it, and whether it holds a whole one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from morfi.checkpoints import Checkpoint
from morfi.errors import InputError, MorfiError

LOAD_AGAIN = "it answers nothing until a checkpoint is loaded whole"


@dataclass(slots=True)
class Served:
    """The weights of an engine that was started on `model_dir` in `dtype`.

    `started_on` is the sha256 of the checkpoint in `model_dir`, None if it is not known. `answers` is false
    from the moment in which weights change until all of them have.
    """

    model_dir: Path
    dtype: str
    started_on: str | None
    sha256: str | None
    answers: bool = True

    def check_answers(self) -> None:
        """Raises MorfiError after a load that failed, until one succeeds."""
        if not self.answers:
            raise MorfiError(f"the engine holds no whole checkpoint after a failed load; {LOAD_AGAIN}")

    def load_arguments(self, checkpoint: Checkpoint) -> tuple[str, str, str, str, str]:
        """Arguments of the workers' `morfi_prepare_weights`; raises InputError for a foreign checkpoint."""
        if self.started_on is None:
            raise InputError(f"{checkpoint.name}: this engine was not started on a checkpoint that is known")
        unmerged = checkpoint.adapter_dir is not None
        if (checkpoint.base_sha256 if unmerged else checkpoint.sha256) != self.started_on:
            raise InputError(
                f"{checkpoint.name} (base {checkpoint.base}, sha256 {checkpoint.base_sha256[:12]}) does not "
                f"belong to the model this engine was started on, {self.model_dir} (sha256 "
                f"{self.started_on[:12]}); expected that model or an unmerged adapter of it"
            )
        if checkpoint.dtype != self.dtype:
            raise InputError(
                f"{checkpoint.name} is to be served in {checkpoint.dtype}, but the engine runs in "
                f"{self.dtype}; resolve it with the base as the engine was started on it"
            )
        adapter = str(checkpoint.adapter_dir) if unmerged else ""
        return str(self.model_dir), self.started_on, self.dtype, adapter, checkpoint.adapter_sha256 or ""

    @contextlib.contextmanager
    def becoming(self, checkpoint: Checkpoint) -> Iterator[None]:
        """For the block that changes the weights: unless it ends without an error, nothing is served.

        Raises MorfiError in place of whatever the block raises.
        """
        self.answers = False
        try:
            yield
        except Exception as error:
            raise MorfiError(f"{checkpoint.name} could not be loaded ({error}); {LOAD_AGAIN}") from error
        self.sha256, self.answers = checkpoint.sha256, True


def first_refusal(refusals: Sequence[str | None]) -> str | None:
    """The reason of the first worker that refuses; None where all agree."""
    return next((refusal for refusal in refusals if refusal is not None), None)


def check_swapped(refusals: Sequence[str | None]) -> None:
    """Raises MorfiError where a worker could not put the weights into its model."""
    if (refusal := first_refusal(refusals)) is not None:
        raise MorfiError(refusal)
