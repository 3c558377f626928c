"""New weights in a live model: what runs in vLLM's workers when an engine loads another checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from morfi.cache import Cache
from morfi.checkpoints.adapters import load_adapter
from morfi.checkpoints.lora import Merge, merged_tensors
from morfi.checkpoints.merge_plan import plan_merge
from morfi.checkpoints.model_files import ModelFiles, open_model
from morfi.checkpoints.weights import Weights
from morfi.errors import InputError
from morfi.serve.weights.loading import are_experts, is_tied, load_tensors, loadable_parts, pack_output_heads


@dataclass(frozen=True, slots=True)
class Source:
    """Where a checkpoint's weights come from; without an adapter it is the base itself."""

    base_dir: Path
    base_sha256: str
    dtype: str
    adapter_dir: Path | None
    adapter_sha256: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked swap: nothing but the arithmetic itself can still be wrong. `merge` is None for the base."""

    source: Source
    base: ModelFiles
    merge: Merge | None

    @property
    def edited(self) -> frozenset[str]:
        """The base's tensors that differ in the checkpoint."""
        return frozenset() if self.merge is None else frozenset(self.merge.edits)


@dataclass(slots=True)
class LiveModel:
    """The model of one worker; `dirty` are the base's tensors that it may hold other values of."""

    runner: Any  # vLLM's model runner
    dirty: frozenset[str] = frozenset()
    plan: Plan | None = None

    def prepare(self, source: Source) -> None:
        """Checks all that can be checked before a weight changes; raises InputError for what does not fit."""
        self.plan = None
        base = open_model(source.base_dir)
        if source.adapter_dir is not None or self.dirty:
            _check_unchanged(base, source)
        if source.adapter_dir is None:
            self.plan = Plan(source, base, None)
            return
        found = load_adapter(source.adapter_dir)
        # What is hashed is what will be merged, whatever becomes of the file.
        adapter = replace(found, weights=found.weights.in_memory())
        if adapter.sha256() != source.adapter_sha256:
            raise InputError(f"{source.adapter_dir} has changed since it was checked; run the command again")
        merge = plan_merge(base, adapter, source.dtype)
        self._check_fits_live_model(base, merge)
        self.plan = Plan(source, base, merge)

    def swap(self) -> None:
        """Puts the prepared checkpoint's weights into the model.

        Loads the layers that differ from the base in it or in what was there before. Whatever it raises, the
        model then holds a mixture until a later swap succeeds.
        """
        plan = self.plan
        assert plan is not None
        self.plan = None
        changed = plan.edited | self.dirty
        if changed:
            self.dirty = changed
            tensors = plan.base.weights.tensors
            model = self.runner.get_model()
            part_of = loadable_parts(model, tensors)
            parts = {part_of[name] for name in changed}
            weights = Weights({name: tensors[name] for name in tensors if part_of[name] in parts})
            merged = weights if plan.merge is None else merged_tensors(weights, plan.merge)
            load_tensors(self.runner, merged, weights.tensors)
            if plan.base.input_embedding in weights.tensors:
                pack_output_heads(model)
            _check_unchanged(plan.base, plan.source)
        self.dirty = plan.edited

    def _check_fits_live_model(self, base: ModelFiles, merge: Merge) -> None:
        path = merge.adapter.path
        alone = "a live engine keeps its shapes; evaluate it by itself, with morfi eval --ckpt"
        if experts := sorted(name for name in merge.edits if are_experts(name)):
            raise InputError(
                f"{path} changes the experts of {base.path} ({experts[0]}), which vLLM does not reload "
                f"correctly; {alone}"
            )
        if merge.untied:
            raise InputError(
                f"{path} gives {base.path} an output head of its own, which the base ties to the input "
                f"embedding; {alone}"
            )
        if merge.vocab_size is not None:
            raise InputError(
                f"{path} changes the number of tokens of {base.path} to {merge.vocab_size}; {alone}"
            )
        if base.tied and base.output_head in base.weights.tensors and not is_tied(self.runner.get_model()):
            raise InputError(
                f"{base.path} ties its output head to the input embedding, and vLLM keeps {base.output_head} "
                "apart from it, which a merge would not reach; save the base again without it"
            )


class WeightSwapping:
    """Mixed into vLLM's worker (`worker_extension_cls`): the two calls that swap its model's weights.

    Both take and return plain text, so that they work across processes. A text returned is a refusal.
    """

    model_runner: Any
    morfi_live_model: LiveModel

    def morfi_prepare_weights(
        self, base_dir: str, base_sha256: str, dtype: str, adapter_dir: str, adapter_sha256: str
    ) -> str | None:
        """Checks a checkpoint, touching no weight; an empty `adapter_dir` stands for the base."""
        if not hasattr(self, "morfi_live_model"):
            self.morfi_live_model = LiveModel(self.model_runner)
        adapter = Path(adapter_dir) if adapter_dir else None
        source = Source(Path(base_dir), base_sha256, dtype, adapter, adapter_sha256)
        return _refusal(lambda: self.morfi_live_model.prepare(source))

    def morfi_swap_weights(self) -> str | None:
        """Puts the weights of the checkpoint that was prepared last into the model."""
        return _refusal(self.morfi_live_model.swap)


def _refusal(action: Callable[[], None]) -> str | None:
    try:
        action()
    except InputError as error:
        return str(error)
    return None


def _check_unchanged(base: ModelFiles, source: Source) -> None:
    # Files that were hashed before are not read again: their size, inode and times tell.
    if base.sha256(Cache()) != source.base_sha256:
        raise InputError(f"the model in {base.path} has changed since the engine started on it; start again")
