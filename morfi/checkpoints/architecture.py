"""A folder's tensors as transformers loads them: what each becomes, and what is shared, lost or unknown.

Nothing here is a list of names of our own: the model is built without memory from config.json, and its
renames, conversions and shared weights are asked for. Only the headers of the weight files are needed.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morfi.checkpoints.weights import TensorEntry, Weights
from morfi.errors import InputError, reason_of

# Attention masks and rotary tables that older versions saved beside the weights; nothing is learned in them.
_OLD_BUFFERS = re.compile(r"(^|\.)(attn|attention|self_attention)\.(masked_)?bias$|\.rotary_emb\.inv_freq$")
_N_SHOWN = 3
_KEPT = 8
_layouts: OrderedDict[object, Layout] = OrderedDict()


@dataclass(frozen=True, slots=True)
class Layout:
    """How the tensors of a folder become the parameters of its architecture in transformers.

    `parameters`: the parameter that a tensor becomes as it is; `tensors`: the other way. `parts`: the one
    that a tensor becomes only together with others, or otherwise than as it is. `modules`: the kind,
    "linear", "conv1d" or "embedding", of each module that LoRA may act on; a "conv1d" stores [d_in, d_out].
    `shapes`: of all parameters and buffers. `shared`: parameters that are another one by the configuration.
    `embedding`, `head`: the parameters of the input embedding and of the output head, None where the
    architecture has none of its own. `rename`: the name that transformers gives to a tensor called so in a
    file or in an adapter.
    """

    architecture: str
    parameters: Mapping[str, str]
    tensors: Mapping[str, str]
    parts: Mapping[str, str]
    modules: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    shared: Mapping[str, str]
    embedding: str | None
    head: str | None
    rename: Callable[[str], str]

    def tensor_of(self, parameter: str) -> str | None:
        """The tensor of the files that is the parameter called `parameter`, None if there is none."""
        return self.tensors.get(parameter)

    def tensor_named(self, name: str) -> str | None:
        """The tensor of the files that `name`, a name of transformers now or earlier, stands for."""
        found = self.tensor_of(self.rename(name))
        return name if found is None and name in self.parts else found


def layout_of(directory: Path, config: Any, architecture: str, weights: Weights) -> Layout:
    """How `weights` fit the class `architecture` built from transformers' `config`.

    Raises InputError where a parameter has no tensor, where a tensor has no place or another shape, and for a
    configuration that no model can be built from.
    """
    known = (architecture, config.to_json_string(use_diff=False), tuple(sorted(_signature(weights))))
    if known in _layouts:
        _layouts.move_to_end(known)
        return _layouts[known]
    with _quiet():
        model = empty_model(directory, config, architecture)
        layout = _layout(model, architecture, weights)
        _check_complete(directory, model, layout, weights)
    _layouts[known] = layout
    while len(_layouts) > _KEPT:
        _layouts.popitem(last=False)
    return layout


def _signature(weights: Weights) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    return ((name, entry.dtype, entry.shape) for name, entry in weights.tensors.items())


def empty_model(directory: Path, config: Any, architecture: str) -> Any:
    """The model with all its parameters on torch's meta device, where they take no memory.

    Raises InputError for a configuration that no model can be built from.
    """
    import torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    classes = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    classes = classes if isinstance(classes, list | tuple) else (classes,)
    built = next(one for one in classes if one.__name__ == architecture)
    try:
        with torch.device("meta"):
            return built(config)
    except (
        ArithmeticError,
        AttributeError,
        ImportError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = reason_of(error)
        raise InputError(
            f"{directory / 'config.json'} gives no {architecture} that transformers can build: {reason}"
        ) from error


def _layout(model: Any, architecture: str, weights: Weights) -> Layout:
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    own = model.state_dict()

    def renamed(name: str) -> tuple[str, str | None]:
        becomes, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, own)
        if becomes not in own and name in own:
            return name, None
        return becomes, pattern

    parameters: dict[str, str] = {}
    parts: dict[str, str] = {}
    for name in weights.tensors:
        becomes, pattern = renamed(name)
        if becomes in own or pattern is not None:
            (parameters if pattern is None else parts)[name] = becomes
    return Layout(
        architecture=architecture,
        parameters=parameters,
        tensors={parameter: name for name, parameter in parameters.items()},
        parts=parts,
        modules=dict(_lora_modules(model)),
        shapes={name: tuple(tensor.shape) for name, tensor in own.items()},
        shared=dict(model.get_expanded_tied_weights_keys(all_submodels=True)),
        embedding=_weight_of(model, model.get_input_embeddings()),
        head=_weight_of(model, model.get_output_embeddings()),
        rename=lambda name: renamed(name)[0],
    )


def _lora_modules(model: Any) -> Iterator[tuple[str, str]]:
    import torch
    from transformers.pytorch_utils import Conv1D

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            yield name, "linear"
        elif isinstance(module, torch.nn.Embedding):
            yield name, "embedding"
        elif isinstance(module, Conv1D):
            yield name, "conv1d"


def linear_leaves(model: Any) -> list[str]:
    """The last names of the linear layers of a model, but for its output head.

    What transformers computes without such a layer is not among them, like the experts of some models.
    """
    head = _weight_of(model, model.get_output_embeddings())
    linear = {name for name, kind in _lora_modules(model) if kind != "embedding" and f"{name}.weight" != head}
    return sorted({name.rpartition(".")[2] for name in linear})


def _weight_of(model: Any, wanted: Any) -> str | None:
    """The name of the weight of the module `wanted`."""
    return next((f"{name}.weight" for name, module in model.named_modules() if module is wanted), None)


def _check_complete(directory: Path, model: Any, layout: Layout, weights: Weights) -> None:
    """Raises InputError unless every tensor has a place of its own and every parameter its tensor."""
    places: dict[str, str] = {}
    for name, parameter in layout.parameters.items():
        if (other := places.setdefault(parameter, name)) != name:
            raise InputError(
                f"{directory}: the weights hold both {other} and {name}, and {layout.architecture} has "
                "one place for them; keep the one that was trained"
            )
    info = _load_without_data(model, weights)
    unexpected = sorted(name for name in info.unexpected_keys if not _OLD_BUFFERS.search(name))
    if info.mismatched_keys:
        name, found, expected = min(info.mismatched_keys)
        raise InputError(
            f"{directory}: the weights give {name} the shape {list(found)}, but {layout.architecture} "
            f"with this config.json has {list(expected)} there; a part of it is missing, or the two files "
            "do not belong together; copy the model again"
        )
    if info.conversion_errors:
        raise InputError(
            f"{directory}: the tensors that make up {min(info.conversion_errors)} do not fit together, so "
            "that one of them is missing or has another shape; copy the model again"
        )
    missing = set(info.missing_keys)
    for target, source in layout.shared.items():
        if source not in missing:
            missing.discard(target)
    if missing:
        raise InputError(_missing(directory, layout, sorted(missing)))
    if unexpected:
        raise InputError(
            f"{directory}: the weights hold {listed(unexpected)}, which {layout.architecture} with this "
            "config.json has no place for, so that it would be left out; correct config.json, or save "
            "the model without it"
        )


def _missing(directory: Path, layout: Layout, names: list[str]) -> str:
    if names == [layout.head] and layout.embedding is not None:
        return (
            f"{directory}: the weights lack {names[0]}, and config.json does not tie it to the input "
            "embedding; copy the model again, or set tie_word_embeddings to true if it was saved tied"
        )
    return (
        f"{directory}: the weights lack {listed(names)}, which {layout.architecture} with this config.json "
        "needs; copy the model again, or save it again with all its parameters gathered"
    )


def listed(names: Sequence[str]) -> str:
    """The first names, and how many more there are, for a message."""
    more = f" and {len(names) - _N_SHOWN} more" if len(names) > _N_SHOWN else ""
    return ", ".join(names[:_N_SHOWN]) + more


def _load_without_data(model: Any, weights: Weights) -> Any:
    """transformers' own account of loading tensors of these names, types and shapes into `model`."""
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    def empty(entry: TensorEntry) -> torch.Tensor:
        # Of any number type: what it is stored as decides nothing here.
        return torch.empty(entry.shape, dtype=torch.float32, device="meta")

    info, _ = convert_and_load_state_dict_in_model(
        model=model,
        state_dict={name: empty(entry) for name, entry in weights.tensors.items()},
        load_config=LoadStateDictConfig(
            dtype=torch.float32, weight_mapping=get_model_conversion_mapping(model), device_map={"": "meta"}
        ),
        disk_offload_index=None,
    )
    model._adjust_missing_and_unexpected_keys(info)
    return info


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and warnings off the terminal."""
    from transformers.utils import logging as transformers_logging

    logger, had_bars = logging.getLogger("transformers"), transformers_logging.is_progress_bar_enabled()
    level = logger.level
    transformers_logging.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if had_bars:
            transformers_logging.enable_progress_bar()
