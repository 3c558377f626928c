"""New weights in the live engine: an adapter, a whole model, and the first again, against transformers."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.checkpoints import resolve_live
from morfi.checkpoints.architecture import linear_leaves
from morfi.checkpoints.live import check_same_form
from morfi.checkpoints.model_files import open_model
from morfi.engine.protocol import ComparesMerges
from morfi.engine.steering import Capture
from morfi.verification.changed_weights import changed_model, lack_of_room
from morfi.verification.differences import Differences
from morfi.verification.lines import Line, Outcome, attempt, unchecked
from morfi.verification.reference import load_reference, reference_of
from morfi.verification.subject import SEEN, Subject, standard_device
from morfi.verification.tolerance import Standard, distances, load_standard, root_mean_square

if TYPE_CHECKING:
    import torch

_ADAPTER, WHOLE, _AGAIN = "swap: an adapter", "swap: whole weights", "swap: the model again"
_MERGED = "swap: merged weights"
_CHANGE = 0.1  # the length of each matrix's change, over that of the matrix


def check_swap(subject: Subject) -> Iterator[Line]:
    """A random adapter in the live engine, then a whole other model, then the model again.

    Each as transformers computes it. The engine must have been started on `subject.checkpoint`; it serves
    that again afterwards.
    """
    with tempfile.TemporaryDirectory() as folder:
        adapter = attempt(_ADAPTER, _adapted, subject, Path(folder))
        yield adapter
        merged = attempt(_MERGED, _merged, subject, Path(folder))
        if merged.outcome != Outcome.UNCHECKED:
            yield merged
    whole = attempt(WHOLE, _whole, subject)
    yield whole
    again = attempt(_AGAIN, _back, subject)
    if {adapter.outcome, whole.outcome} != {Outcome.UNCHECKED}:
        yield again


def _adapted(subject: Subject, folder: Path) -> Line:
    base = subject.checkpoint
    try:
        merged = _write_adapter(base.model_dir, base.dtype, folder, standard_device(base))
    except ValueError as error:
        return unchecked(_ADAPTER, f"PEFT makes no adapter of it: {error}")
    subject.engine.load_checkpoint(resolve_live(str(folder), base=base))
    return _compared(subject, _ADAPTER, merged)


def _merged(subject: Subject, folder: Path) -> Line:
    """The live weights, number by number, where the engine has merged the adapter in `folder` in place."""
    engine, found = subject.engine, None
    if isinstance(engine, ComparesMerges):
        found = engine.compare_merge(resolve_live(str(folder), base=subject.checkpoint))
    if found is None:
        return unchecked(_MERGED, "the weights were merged on the CPU")
    return Line(
        _MERGED,
        Outcome.HOLDS if found.worst <= 1 else Outcome.DIFFERS,
        f"{found.different:,} of {found.numbers:,} weights differ from the CPU's merge, by at most "
        f"{found.worst:.2g} of what sums in another order may ({found.where})",
    )


def _whole(subject: Subject) -> Line:
    base = subject.checkpoint
    model = open_model(base.model_dir)
    check_same_form(model, model)  # whether one of this form may be swapped, before any is written
    if reason := lack_of_room(model, base.dtype):
        return unchecked(WHOLE, reason)
    with changed_model(model) as folder:
        subject.engine.load_checkpoint(resolve_live(str(folder), base=base))
        changed = load_standard(folder, base.dtype, standard_device(base))
    return _compared(subject, WHOLE, changed)


def _back(subject: Subject) -> Line:
    subject.engine.load_checkpoint(subject.checkpoint)
    return _compared(subject, _AGAIN, subject.standard)


def _compared(subject: Subject, name: str, standard: Standard) -> Line:
    """What the engine serves now, against `standard`."""
    last = subject.n_layers - 1
    capture = [Capture((last,), "all")] * len(subject.prompts)
    found, moved = Differences(), 0.0
    answers = subject.ask(subject.prompts, capture=capture)
    for number, (prompt, answer) in enumerate(zip(subject.prompts, answers, strict=True)):
        expected = standard.run((*prompt, *answer.token_ids[:-1]))
        found.take_captured(answer.captured[0], expected)
        found.take_tokens(answer, expected, len(prompt), f"answer {number}")
        rows, before = expected.streams.after[last][: len(prompt)], subject.streams[number].after[last]
        moved = max(moved, float(root_mean_square(distances(rows, before))) / expected.allowed[last])
    if standard is not subject.standard and moved < SEEN:
        return unchecked(name, "the new weights change the streams by less than rounding does")
    return found.line(name)


def _write_adapter(model_dir: Path, dtype: str, folder: Path, device: str) -> Standard:
    """Writes a random LoRA adapter of every linear layer; returns the model merged with it.

    Merged in float32 and rounded once. Raises ValueError for a model of which PEFT can make none.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    model = load_reference(model_dir, "float32").model
    draw = torch.Generator().manual_seed(0)

    def with_lora(base: Any, targets: str | list[str]) -> Any:
        settings = LoraConfig(r=4, lora_alpha=4, target_modules=targets, task_type="CAUSAL_LM")
        return get_peft_model(base, settings)

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of unusual forms, which are refused by name later
        tuned = with_lora(model, "all-linear")
        if tuned.peft_config["default"].target_parameters:  # of experts, which are not merged
            model = tuned.unload()
            tuned = with_lora(model, linear_leaves(model))
        for module in tuned.modules():
            if hasattr(module, "lora_B") and hasattr(module, "base_layer"):
                _fill(module, draw)
        tuned.save_pretrained(folder)
        merged = tuned.merge_and_unload().eval().to(device)
    if dtype == "float32":
        return Standard(reference_of(merged), None, dtype)
    rounded = copy.deepcopy(merged).to(getattr(torch, dtype))
    return Standard(reference_of(merged), reference_of(rounded), dtype)


def _fill(module: Any, draw: torch.Generator) -> None:
    """Gives a layer's adapter random numbers whose product has _CHANGE of the length of its weight."""
    import torch

    a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
    for part in (a, b):
        part.copy_(torch.randn(part.shape, generator=draw))
    wanted = _CHANGE * float(module.base_layer.weight.norm())
    b.mul_(wanted / max(float((b @ a).norm()), 1e-30))
