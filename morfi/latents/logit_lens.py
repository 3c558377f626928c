"""The tokens that a direction of the residual stream speaks for, read off by the model's own last steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from morfi.checkpoints.model_files import ModelFiles
from morfi.checkpoints.tokenizer import load_tokenizer
from morfi.errors import InputError

if TYPE_CHECKING:
    import torch

SHOWN = 8  # tokens of each kind
_ROWS = 1 << 15  # of the unembedding at a time


@dataclass(frozen=True, slots=True)
class SpokenFor:
    """The tokens whose logits a direction raises most, and those that it lowers most, the first first."""

    promoted: tuple[str, ...]
    suppressed: tuple[str, ...]


def spoken_for(model: ModelFiles, directions: torch.Tensor) -> list[SpokenFor]:
    """The tokens of directions [n, d_model] by the model's final norm, without its bias, and unembedding.

    The logit lens (nostalgebraist, 2020) of a direction by itself: layers between are passed over, and how
    long the direction is does not count. Raises InputError for a model whose end is made otherwise.
    """
    import torch

    name = model.output_head if model.output_head in model.weights.tensors else model.input_embedding
    if name is None or name not in model.weights.tensors:
        raise InputError(f"{model.path} holds no unembedding")
    unembedding = model.weights.tensor(name)
    if unembedding.shape[1] != directions.shape[1]:
        raise InputError(
            f"the unembedding of {model.path} reads {unembedding.shape[1]} numbers, not {directions.shape[1]}"
        )
    tokenizer = load_tokenizer(model.path)
    with torch.no_grad():
        last = _final_norm(model)(directions.float())
        # Rows after the tokenizer's last are padding.
        rows = torch.split(unembedding[: len(tokenizer)], _ROWS)
        logits = torch.cat([last @ part.float().T for part in rows], 1)
    order = logits.argsort(stable=True, dim=1, descending=True)
    return [
        SpokenFor(_texts(tokenizer, row[:SHOWN].tolist()), _texts(tokenizer, row.flip(0)[:SHOWN].tolist()))
        for row in order
    ]


def _final_norm(model: ModelFiles) -> Any:
    """The norm after the last layer, with the model's weights and without a bias."""
    import torch

    empty = model.empty_model()
    outside = [
        (name, module)
        for name, module in empty.named_modules()
        if "norm" in type(module).__name__.lower() and not any(part.isdigit() for part in name.split("."))
    ]
    if not outside:
        raise InputError(f"{model.path}: no norm after the last layer is known")
    name, module = outside[-1]
    norm = copy.deepcopy(module).to_empty(device="cpu").float()
    state = {}
    for own, value in norm.state_dict().items():
        tensor = model.layout.tensor_of(f"{name}.{own}")
        if tensor is None:
            raise InputError(f"{model.path}: {name}.{own} does not lie in the files as it is")
        is_bias = own.endswith("bias")
        state[own] = torch.zeros_like(value) if is_bias else model.weights.tensor(tensor).float()
    norm.load_state_dict(state)
    return norm


def _texts(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """The tokens as text, by their names in the vocabulary where they are parts of a letter."""
    decoded = ((one, tokenizer.decode([one], clean_up_tokenization_spaces=False)) for one in ids)
    return tuple(
        text if text and "\ufffd" not in text else str(tokenizer.convert_ids_to_tokens(one))
        for one, text in decoded
    )
