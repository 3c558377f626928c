"""Where the decoder layers of a model are, by its structure: in transformers' models and in vLLM's alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from morfi.errors import InputError

if TYPE_CHECKING:
    import torch


def decoder_layers(model: torch.nn.Module, n_layers: int) -> torch.nn.ModuleList:
    """The one list of `n_layers` modules that lies in no other such list: the model's decoder layers.

    A second list of the same modules is none of its own.

    The residual stream after layer L is, in transformers, what its module in this list returns
    (`residual_stream`). Raises InputError where there is no such list, or several.
    """
    import torch

    found: dict[str, torch.nn.ModuleList] = {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.ModuleList) or len(module) != n_layers:
            continue
        is_inner = any(name.startswith(f"{outer}.") for outer in found)
        is_known = any(list(map(id, module)) == list(map(id, other)) for other in found.values())
        if not is_inner and not is_known:
            found[name] = module
    if len(found) != 1:
        names = f" ({', '.join(found)})" if found else ""
        raise InputError(f"it has {len(found)} lists of {n_layers} layers{names}; expected one")
    return next(iter(found.values()))


def layers_of(model: Any) -> torch.nn.ModuleList:
    """The decoder layers of a model of transformers; raises InputError where there is no one list of them."""
    try:
        return decoder_layers(model, model.config.get_text_config().num_hidden_layers)
    except InputError as error:
        raise InputError(f"{type(model).__name__} is of no known form: {error}") from error


def residual_stream(output: Any) -> torch.Tensor:
    """The residual stream after a layer of a model of transformers, out of what the layer returns."""
    found: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return found
