"""New weights in a live model: what runs in vLLM's workers when an engine loads another checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from morfi.cache import Cache
from morfi.checkpoints.adapters import load_adapter
from morfi.checkpoints.live import ALONE, are_experts, check_live_merge, check_same_form, live_tensors
from morfi.checkpoints.lora import Merge, merged_tensors
from morfi.checkpoints.merge_plan import plan_merge
from morfi.checkpoints.model_files import ModelFiles, open_model
from morfi.checkpoints.weights import Weights
from morfi.engine.protocol import MergeDifference
from morfi.errors import InputError
from morfi.serve.weights.in_place import InPlace, in_place_of
from morfi.serve.weights.loading import (
    all_cores,
    has_experts,
    is_tied,
    load_tensors,
    loadable_parts,
    pack_output_heads,
)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a checkpoint's weights come from: an adapter of the base, another model, or the base itself."""

    base_dir: Path
    base_sha256: str
    dtype: str
    adapter_dir: Path | None
    adapter_sha256: str
    model_dir: Path | None = None
    model_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked swap: nothing but the arithmetic itself can still be wrong.

    The weights are those of `model`, merged with an adapter where there is a `merge`.
    """

    source: Source
    model: ModelFiles
    merge: Merge | None

    @property
    def edited(self) -> frozenset[str]:
        """The base's tensors that differ, or may, in the checkpoint."""
        if self.source.model_dir is not None:
            return live_tensors(self.model)
        return frozenset() if self.merge is None else frozenset(self.merge.edits)

    def check_unchanged(self) -> None:
        """Raises InputError where the model's files are not those that were checked."""
        if self.source.model_dir is None:
            _check_unchanged(self.model, self.source.base_sha256)
        else:
            _check_unchanged(self.model, self.source.model_sha256, since="it was checked; run the command")


@dataclass(slots=True)
class LiveModel:
    """The model of one worker; `dirty` are the base's tensors that it may hold other values of."""

    runner: Any  # vLLM's model runner
    dirty: frozenset[str] = frozenset()
    plan: Plan | None = None
    in_place: InPlace | None = None
    _is_placed: bool = False  # whether `in_place` was looked for

    def prepare(self, source: Source) -> None:
        """Checks all that can be checked before a weight changes; raises InputError for what does not fit."""
        self.plan = None
        base = open_model(source.base_dir)
        if source.adapter_dir is not None or self.dirty:
            _check_unchanged(base, source.base_sha256)
        if source.adapter_dir is None:
            plan = Plan(source, self._other(base, source.model_dir), None)
            if source.model_dir is not None:
                plan.check_unchanged()
            self.plan = plan
            return
        found = load_adapter(source.adapter_dir)
        # What is hashed is what will be merged, whatever becomes of the file.
        adapter = replace(found, weights=found.weights.in_memory())
        if adapter.sha256() != source.adapter_sha256:
            raise InputError(f"{source.adapter_dir} has changed since it was checked; run the command again")
        merge = plan_merge(base, adapter, source.dtype)
        check_live_merge(base, merge)
        self._check_model(base)
        self.plan = Plan(source, base, merge)

    def swap(self) -> None:
        """Puts the prepared checkpoint's weights into the model.

        Of all that differs from the base in it or in what was there before. Whatever it raises, the model
        then holds a mixture until a later swap succeeds.
        """
        plan = self.plan
        assert plan is not None
        self.plan = None
        changed = plan.edited | self.dirty
        if changed:
            in_place = self._place(plan, changed)
            self.dirty = changed
            if in_place is not None:
                in_place.swap(changed, plan.merge)
            else:
                self._load(plan, changed)
            plan.check_unchanged()
        self.dirty = plan.edited

    def compare(self) -> MergeDifference | None:
        """How the live weights differ from the CPU's merge of what was prepared last, which they must be of.

        None where they were not merged in place.
        """
        plan, self.plan = self.plan, None
        assert plan is not None
        if plan.merge is None or self.in_place is None:
            return None
        return self.in_place.compare(plan.merge)

    def _place(self, plan: Plan, changed: frozenset[str]) -> InPlace | None:
        """What computes the tensors `changed` in place; None where vLLM's loader has to load them."""
        if plan.source.model_dir is not None:
            return None
        if not self._is_placed:
            self.in_place, self._is_placed = in_place_of(self.runner, plan.model.weights), True
        takes = self.in_place is not None and self.in_place.takes(changed, self.dirty, plan.merge)
        return self.in_place if takes else None

    def _load(self, plan: Plan, changed: frozenset[str]) -> None:
        """Loads whole parts of the model, those that have a tensor of `changed`, through vLLM's loaders."""
        tensors = plan.model.weights.tensors
        model = self.runner.get_model()
        part_of = loadable_parts(model, tensors)
        parts = {part_of[name] for name in changed}
        weights = Weights({name: tensors[name] for name in tensors if part_of[name] in parts})
        merged = weights if plan.merge is None else merged_tensors(weights, plan.merge)
        with all_cores(self.runner):
            load_tensors(self.runner, merged, weights.tensors)
        if plan.model.input_embedding in weights.tensors:
            pack_output_heads(model)

    def _other(self, base: ModelFiles, model_dir: Path | None) -> ModelFiles:
        """The model that takes the base's place: the base itself where there is no other."""
        if model_dir is None:
            return base
        model = open_model(model_dir)
        check_same_form(model, base)
        self._check_model(base)
        return model

    def _check_model(self, base: ModelFiles) -> None:
        """Raises InputError where the live model has parts that new weights would not reach."""
        model = self.runner.get_model()
        if has_experts(model) and not any(map(are_experts, base.weights.tensors)):
            raise InputError(
                f"{base.layout.architecture} names its experts like the rest of a layer, and "
                f"vLLM does not reload them correctly; {ALONE}"
            )
        if base.tied and base.output_head in base.weights.tensors and not is_tied(model):
            raise InputError(
                f"{base.path} ties its output head to the input embedding, and vLLM keeps {base.output_head} "
                "apart from it, which new weights would not reach; save the base again without it"
            )


class WeightSwapping:
    """Mixed into vLLM's worker (`worker_extension_cls`): the calls that swap its model's weights.

    They take and return plain text and numbers, so that they work across processes. A text returned is a
    refusal.
    """

    model_runner: Any
    morfi_live_model: LiveModel

    def morfi_prepare_weights(
        self,
        *,
        base_dir: str,
        base_sha256: str,
        dtype: str,
        adapter_dir: str,
        adapter_sha256: str,
        model_dir: str,
        model_sha256: str,
    ) -> str | None:
        """Checks a checkpoint, touching no weight: of a model or adapter, or the base: neither."""
        if not hasattr(self, "morfi_live_model"):
            self.morfi_live_model = LiveModel(self.model_runner)
        adapter = Path(adapter_dir) if adapter_dir else None
        model = Path(model_dir) if model_dir else None
        source = Source(Path(base_dir), base_sha256, dtype, adapter, adapter_sha256, model, model_sha256)
        return _refusal(lambda: self.morfi_live_model.prepare(source))

    def morfi_swap_weights(self) -> str | None:
        """Puts the weights of the checkpoint that was prepared last into the model."""
        return _refusal(self.morfi_live_model.swap)

    def morfi_compare_merge(self) -> tuple[int, int, float, str] | None:
        """The fields of what `LiveModel.compare` finds."""
        found = self.morfi_live_model.compare()
        return None if found is None else astuple(found)


def _refusal(action: Callable[[], None]) -> str | None:
    try:
        action()
    except InputError as error:
        return str(error)
    return None


def _check_unchanged(
    model: ModelFiles, sha256: str, *, since: str = "the engine started on it; start"
) -> None:
    # Files that were hashed before are not read again: their size, inode and times tell.
    if model.sha256(Cache()) != sha256:
        raise InputError(f"the model in {model.path} has changed since {since} again")
