"""The arithmetic of a LoRA merge: W' = W + scaling * B A in float32, cast once to the serving dtype."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from morfi.checkpoints.adapters import Adapter, Lora, TokenRows
from morfi.checkpoints.weights import Weights, is_finite
from morfi.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Edit:
    """How one tensor changes: replaced, then rows set, then B A or a bias added.

    `flipped`: the tensor is stored [d_in, d_out], as B A is not.
    """

    replacement: str | None = None
    rows: TokenRows | None = None
    lora: Lora | None = None
    bias_of: Lora | None = None
    flipped: bool = False


@dataclass(frozen=True, slots=True)
class Merge:
    """A checked plan to merge `adapter`; `edits` is by tensor name of the base, `head` that of its output
    head.

    `untied`: the base shares its input embedding with the output head and the result cannot, so that
    the head is a tensor of its own. `vocab_size`: the new number of tokens, None if unchanged.
    """

    adapter: Adapter
    dtype: str
    edits: Mapping[str, Edit]
    embedding: str | None
    head: str
    base_tied: bool
    untied: bool
    vocab_size: int | None

    def config(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration of the merged model, from the base's."""
        changed = {**base, "dtype": self.dtype, "tie_word_embeddings": self.base_tied and not self.untied}
        # Read by transformers before version 5.
        changed.pop("torch_dtype", None)
        return changed if self.vocab_size is None else {**changed, "vocab_size": self.vocab_size}


def merged_tensors(
    base_tensors: Iterable[tuple[str, torch.Tensor]], merge: Merge
) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor of the merged model, from the base's, one at a time.

    What the adapter leaves alone stays as it is stored; the rest is in the serving dtype, or in the base's
    own where that holds more, for the model may compute with it. Raises InputError where a result does not
    fit the serving dtype.
    """
    for name, tensor in base_tensors:
        if name == merge.head and merge.base_tied:
            continue
        yield name, merged(name, tensor, merge)
        if name == merge.embedding and merge.untied:
            yield merge.head, merged(merge.head, tensor, merge)


def edited(tensor: torch.Tensor, edit: Edit, adapter: Adapter) -> torch.Tensor:
    """The tensor after `edit`, in float32."""
    import torch

    stored = adapter.weights.tensor
    weight = stored(edit.replacement) if edit.replacement else tensor
    if edit.rows is not None:
        indices = torch.tensor(edit.rows.indices, dtype=torch.int64, device=weight.device)
        weight = weight.float().index_copy(0, indices, stored(edit.rows.name).float())
    if edit.bias_of is not None:
        weight = weight.float() + stored(edit.bias_of.parts["bias"]).float() * edit.bias_of.scaling
    if edit.lora is None:
        return weight.float()
    a, b = (stored(name).float() for name in matrices(edit.lora))
    # In place: a merge is bound by memory, and a sum rounds the same from either side.
    result = (b @ a).mul_(edit.lora.scaling).add_(weight.T if edit.flipped else weight)  # [d_out, d_in]
    if "magnitude" in edit.lora.parts:
        # DoRA (arXiv 2402.09353, equation 5): each output's direction keeps, its length is learned.
        magnitude = stored(edit.lora.parts["magnitude"]).float()
        result.mul_((magnitude / torch.linalg.norm(result, dim=1))[:, None])
    return result.T if edit.flipped else result


def narrowed(merge: Merge, name: str, box: Sequence[slice], device: torch.device) -> Merge:
    """The merge of the part `box` of the tensor `name` alone, with the adapter's share of it on `device`.

    A part's arithmetic is that of the whole tensor, but for DoRA, whose lengths are those of whole outputs:
    `is_narrowable` says so.
    """
    edit, weights = merge.edits[name], merge.adapter.weights
    box, parts = tuple(box), {}
    if edit.replacement is not None:
        parts[edit.replacement] = weights.part(edit.replacement, box)
    if (rows := edit.rows) is not None:
        first, stop = box[0].start, box[0].stop
        inside = [place for place, row in enumerate(rows.indices) if first <= row < stop]
        parts[rows.name] = weights.tensor(rows.name)[inside][(slice(None), *box[1:])]
        edit = replace(edit, rows=TokenRows(rows.name, tuple(rows.indices[i] - first for i in inside)))
    if edit.bias_of is not None:
        parts[edit.bias_of.parts["bias"]] = weights.part(edit.bias_of.parts["bias"], box)
    if edit.lora is not None:
        a, b = matrices(edit.lora)
        outputs, inputs = reversed(box) if edit.flipped else box
        parts[a], parts[b] = weights.tensor(a)[:, inputs], weights.tensor(b)[outputs]
        if "magnitude" in edit.lora.parts:
            parts[edit.lora.parts["magnitude"]] = weights.part(edit.lora.parts["magnitude"], [outputs])
    held = {part: tensor.to(device, non_blocking=True) for part, tensor in parts.items()}
    adapter = replace(merge.adapter, weights=Weights(weights.tensors, held))
    return replace(merge, adapter=adapter, edits={name: edit})


def is_narrowable(edit: Edit, box: Sequence[slice], shape: Sequence[int]) -> bool:
    """Whether the part `box` of a tensor of this shape can be merged without the rest of it."""
    if edit.lora is None or "magnitude" not in edit.lora.parts:
        return True
    inputs = 0 if edit.flipped else 1
    return (box[inputs].start, box[inputs].stop) == (0, shape[inputs])


def matrices(lora: Lora) -> tuple[str, str]:
    """The names of A and B in the adapter's file."""
    return lora.parts.get("a") or lora.parts["embedding_a"], lora.parts.get("b") or lora.parts["embedding_b"]


def merged(name: str, tensor: torch.Tensor, merge: Merge) -> torch.Tensor:
    """The tensor `name` of the merged model, from the base's; the rest as for `merged_tensors`."""
    import torch

    if not tensor.is_floating_point():
        return tensor
    edit, dtype = merge.edits.get(name), getattr(torch, merge.dtype)
    result = tensor
    if edit is not None:
        result = edited(tensor, edit, merge.adapter).to(torch.promote_types(tensor.dtype, dtype))
    if not is_finite(result.to(dtype)):
        raise InputError(
            f"{merge.adapter.path}: the merged tensor {name} holds NaN or infinity in {merge.dtype}; "
            "give --dtype float32, and if that fails too the adapter is damaged"
        )
    return result
