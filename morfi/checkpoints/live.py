"""What can take the place of a base model's weights in a live engine, as far as files tell."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from morfi.checkpoints.architecture import listed
from morfi.checkpoints.lora import Merge
from morfi.checkpoints.model_files import ModelFiles
from morfi.checkpoints.weights import read_json
from morfi.errors import InputError

ALONE = "a live engine keeps its shapes; evaluate it by itself, with morfi eval --ckpt"
_EXPERTS = re.compile(r".*\.experts\.")
# Settings that say who saved a model and how, or what an engine is told in other ways.
_OTHERWISE = frozenset({"_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype"})


def are_experts(tensor: str) -> bool:
    """Whether the tensor of this name belongs to the experts of a mixture, which vLLM does not load anew
    rightly.

    On a CPU it packs them when the engine starts and not again, so that what is loaded later is read wrongly.
    """
    return _EXPERTS.match(tensor) is not None


def check_live_merge(base: ModelFiles, merge: Merge) -> None:
    """Raises InputError where an engine that serves `base` cannot become what `merge` makes of it."""
    path = merge.adapter.path
    if experts := sorted(name for name in merge.edits if are_experts(name)):
        raise InputError(
            f"{path} changes the experts of {base.path} ({experts[0]}), which vLLM does not reload "
            f"correctly; {ALONE}"
        )
    if merge.untied:
        raise InputError(
            f"{path} gives {base.path} an output head of its own, which the base ties to the input "
            f"embedding; {ALONE}"
        )
    if merge.vocab_size is not None:
        raise InputError(f"{path} changes the number of tokens of {base.path} to {merge.vocab_size}; {ALONE}")


def check_same_form(model: ModelFiles, base: ModelFiles) -> None:
    """Raises InputError where an engine that serves `base` cannot be given the weights of `model` instead.

    Architecture, settings, stored dtype and tensors must be the same: only values may differ.
    """
    for what, own, expected in _differences(model, base):
        raise InputError(f"{model.path} has {what} {own}, and the base {base.path} has {expected}; {ALONE}")
    if experts := sorted(name for name in model.weights.tensors if are_experts(name)):
        raise InputError(
            f"{model.path} has experts ({experts[0]}), which vLLM does not reload correctly; {ALONE}"
        )


def live_tensors(model: ModelFiles) -> frozenset[str]:
    """The names of the tensors that an engine takes from the files: not a tied output head's own copy."""
    return frozenset(model.weights.tensors) - ({model.output_head} if model.tied else set())


def _differences(model: ModelFiles, base: ModelFiles) -> Iterator[tuple[str, object, object]]:
    """What differs, with both values."""
    yield from _unequal("the architecture", model.layout.architecture, base.layout.architecture)
    yield from _unequal("the dtype", model.dtype, base.dtype)
    yield from _unequal("a tied output head:", model.tied, base.tied)
    own, theirs = _settings(model.whole_config), _settings(base.whole_config)
    for key in sorted(own.keys() | theirs.keys()):
        yield from _unequal(f"the setting {key} =", own.get(key), theirs.get(key))
    yield from _unequal("end tokens", _ends(model), _ends(base))
    names, expected = live_tensors(model), live_tensors(base)
    if names != expected:
        yield (
            "other tensors:",
            listed(sorted(names - expected)) or "none",
            listed(sorted(expected - names)) or "none",
        )
    for name in sorted(names):
        shape, wanted = model.weights.tensors[name].shape, base.weights.tensors[name].shape
        yield from _unequal(f"{name} of the shape", list(shape), list(wanted))


def _unequal(what: str, own: object, expected: object) -> Iterator[tuple[str, object, object]]:
    if own != expected:
        yield what, own, expected


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _OTHERWISE}


def _ends(model: ModelFiles) -> Any:
    """The tokens that end an answer, where generation_config.json names any."""
    path = model.path / "generation_config.json"
    return read_json(path).get("eos_token_id") if path.is_file() else None
