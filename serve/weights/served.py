"""Which checkpoint a live engine serves: what may be loaded into it, and whether it holds a whole one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morfi.checkpoints import Checkpoint
from morfi.engine.protocol import MergeDifference
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

    def load_arguments(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Arguments of the workers' `morfi_prepare_weights`; raises InputError for a foreign checkpoint."""
        if self.started_on is None:
            raise InputError(f"{checkpoint.name}: this engine was not started on a checkpoint that is known")
        unmerged = checkpoint.adapter_dir is not None
        merged = not unmerged and checkpoint.adapter_sha256 is not None
        if self.started_on not in (checkpoint.sha256, None if merged else checkpoint.base_sha256):
            raise InputError(
                f"{checkpoint.name} (base {checkpoint.base}, sha256 {checkpoint.base_sha256[:12]}) does not "
                f"belong to the model this engine was started on, {self.model_dir} (sha256 "
                f"{self.started_on[:12]}); expected that model, or an unmerged adapter or a model "
                "that was resolved for it"
            )
        if checkpoint.dtype != self.dtype:
            raise InputError(
                f"{checkpoint.name} is to be served in {checkpoint.dtype}, but the engine runs in "
                f"{self.dtype}; resolve it with the base as the engine was started on it"
            )
        adapter = str(checkpoint.adapter_dir) if unmerged else ""
        other = not unmerged and checkpoint.sha256 != self.started_on
        return {
            "base_dir": str(self.model_dir),
            "base_sha256": self.started_on,
            "dtype": self.dtype,
            "adapter_dir": adapter,
            "adapter_sha256": (checkpoint.adapter_sha256 or "") if unmerged else "",
            "model_dir": str(checkpoint.model_dir) if other else "",
            "model_sha256": checkpoint.sha256 if other else "",
        }

    def load(self, core: Any, checkpoint: Checkpoint, reset_prefix_cache: Callable[[], None]) -> None:
        """Serves `checkpoint` in vLLM's engine `core`; as `morfi.serve.engine.Engine.load_checkpoint`."""
        self._prepare(core, checkpoint)
        with self.becoming(checkpoint):
            refusals = core.collective_rpc("morfi_swap_weights")
            core.set_weight_version(checkpoint.sha256)
            reset_prefix_cache()
            check_swapped(refusals)

    def compare_merge(self, core: Any, checkpoint: Checkpoint) -> MergeDifference | None:
        """As `morfi.serve.engine.Engine.compare_merge`."""
        if self.sha256 != checkpoint.sha256:
            raise InputError(f"{checkpoint.name} is not what is served")
        self._prepare(core, checkpoint)
        found = core.collective_rpc("morfi_compare_merge")
        return MergeDifference.of_all([MergeDifference(*one) for one in found if one is not None])

    def _prepare(self, core: Any, checkpoint: Checkpoint) -> None:
        """Lets the workers check `checkpoint`; raises InputError for one that cannot be loaded here."""
        arguments = self.load_arguments(checkpoint)
        if core.has_unfinished_requests():
            raise MorfiError(f"{checkpoint.name} cannot be loaded while requests are running; let them end")
        if refusal := first_refusal(core.collective_rpc("morfi_prepare_weights", kwargs=arguments)):
            raise InputError(refusal)

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
