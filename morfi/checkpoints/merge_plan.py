"""Checking that an adapter fits its base, and what merging it does to each tensor."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from morfi.checkpoints.adapters import Adapter, Lora
from morfi.checkpoints.fit import check_whole, named_as_in_files
from morfi.checkpoints.lora import Edit, Merge, edited, matrices
from morfi.checkpoints.model_files import ALWAYS_TIED, ModelFiles
from morfi.checkpoints.text_model import is_of_whole
from morfi.checkpoints.vocabulary import highest_token
from morfi.errors import InputError


def plan_merge(base: ModelFiles, adapter: Adapter, dtype: str) -> Merge:
    """The plan of merging `adapter` into `base`; raises InputError where the two do not fit."""
    layout = base.layout
    if adapter.config.get("fan_in_fan_out") and "conv1d" not in layout.modules.values():
        raise InputError(
            f"{adapter.path}: fan_in_fan_out is set, which is for GPT-2's layers, but {base.path} is a "
            f"{base.model_type} model; give the adapter's own base as --base"
        )
    check_whole(adapter, base)
    adapter = named_as_in_files(adapter, base)
    fit = _Fit(base, adapter)
    fit.collect()
    embedding, head = base.input_embedding, base.output_head
    untied = False
    if base.tied and embedding is not None and (embedding in fit.edits or head in fit.edits):
        fit.edits.update(_share(adapter, fit.edits, embedding, head))
        untied = _differ(fit, embedding, head, dtype)
        if not untied:
            del fit.edits[head]
    if untied and base.model_type in ALWAYS_TIED:
        raise InputError(
            f"{adapter.path} trains the input embedding and the output head apart, which vLLM cannot serve "
            f"for {base.model_type}; train it with ensure_weight_tying or without these modules"
        )
    vocab_size = None if embedding is None else _vocab_size(fit, embedding, head, untied)
    if vocab_size is not None and "vocab_size" not in base.config:
        raise InputError(
            f"{adapter.path} changes the number of tokens to {vocab_size}, and the config.json of "
            f"{base.path} has no vocab_size of its own; merge it with PEFT's merge_and_unload and give "
            "the merged model"
        )
    return Merge(adapter, dtype, fit.edits, embedding, head, base.tied, untied, vocab_size)


@dataclass(slots=True)
class _Fit:
    """The edits collected so far, by tensor name of the base; a tied output head counts as a tensor."""

    base: ModelFiles
    adapter: Adapter
    edits: dict[str, Edit] = field(default_factory=dict)
    base_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.base_shapes = {name: entry.shape for name, entry in self.base.weights.tensors.items()}
        if self.base.tied and self.base.input_embedding is not None:
            self.base_shapes[self.base.output_head] = self.base_shapes[self.base.input_embedding]

    def collect(self) -> None:
        """Fills `edits` from the adapter; raises InputError for a tensor that has no place or shape there."""
        for tensor, stored in self.adapter.replacements.items():
            self.edits[tensor] = replace(self._edit(tensor, stored.name), replacement=stored.name)
            self._check_replacement(tensor, stored.name)
        for module, rows in self.adapter.token_rows.items():
            tensor = f"{module}.weight"
            self.edits[tensor] = replace(self._edit(tensor, rows.name), rows=rows)
            self._check_rows(tensor, rows.name, rows.indices)
        for module, lora in self.adapter.loras.items():
            tensor, bias = f"{module}.weight", f"{module}.bias"
            edit = self._edit(tensor, matrices(lora)[0])
            flipped = self.base.is_conv1d(tensor) or "embedding_a" in lora.parts
            self.edits[tensor] = replace(edit, lora=lora, flipped=flipped)
            self._check_lora(tensor, lora, self.edits[tensor].flipped)
            if "bias" in lora.parts:
                self.edits[bias] = replace(self._edit(bias, lora.parts["bias"]), bias_of=lora)
                self._expect(lora.parts["bias"], self.base_shapes[bias], bias)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of `tensor` after the merge."""
        edit = self.edits.get(tensor)
        if edit is not None and edit.replacement is not None:
            return self.adapter.weights.tensors[edit.replacement].shape
        return self.base_shapes[tensor]

    def _edit(self, tensor: str, source: str) -> Edit:
        if tensor not in self.base_shapes and is_of_whole(tensor):
            raise InputError(
                f"{self.adapter.path} was trained on a whole model that reads images too, and only its text "
                "model is served; merge the adapter into the whole model (PEFT's merge_and_unload), save "
                "that, and give its folder"
            )
        if tensor not in self.base_shapes:
            raise InputError(
                f"{self.adapter.path}: the tensor {source} belongs to {tensor}, which the base "
                f"{self.base.path} lacks; give the adapter's own base as --base"
            )
        return self.edits.get(tensor, Edit())

    def _expect(self, source: str, expected: tuple[int, ...], tensor: str) -> None:
        """Raises InputError unless the adapter's `source` has the shape that the base's `tensor` asks for."""
        shape = self.adapter.weights.tensors[source].shape
        if shape != expected:
            raise InputError(
                f"{self.adapter.path}: {source} has the shape {list(shape)}, but {tensor} of the base "
                f"{self.base.path} is {list(self.base_shapes[tensor])}, which needs {list(expected)}; "
                "give the adapter's own base as --base"
            )

    def _check_replacement(self, tensor: str, source: str) -> None:
        expected = self.base_shapes[tensor]
        shape = self.adapter.weights.tensors[source].shape
        if tensor in (self.base.input_embedding, self.base.output_head) and len(shape) == 2:
            # Resized embeddings may have another number of rows; _vocab_size checks that both ends agree.
            expected = (shape[0], expected[1])
        self._expect(source, expected, tensor)

    def _check_rows(self, tensor: str, source: str, indices: tuple[int, ...]) -> None:
        shape = self.shape(tensor)
        self._expect(source, (len(indices), *shape[1:]), tensor)
        for row in indices:
            if not 0 <= row < shape[0]:
                raise InputError(
                    f"{self.adapter.path}: the trained token {row} is out of range for the base "
                    f"{self.base.path} with {shape[0]} tokens; give the adapter's own base as --base"
                )

    def _check_lora(self, tensor: str, lora: Lora, flipped: bool) -> None:
        shape = self.shape(tensor)
        if len(shape) != 2:
            raise InputError(
                f"{self.adapter.path}: {tensor} of the base {self.base.path} is {list(shape)}, and LoRA "
                "needs a matrix; give the adapter's own base as --base"
            )
        d_out, d_in = reversed(shape) if flipped else shape
        a, b = matrices(lora)
        rank = self.adapter.weights.tensors[a].shape[0]
        self._expect(a, (rank, d_in), tensor)
        self._expect(b, (d_out, rank), tensor)
        if "magnitude" in lora.parts:
            self._expect(lora.parts["magnitude"], (d_out,), tensor)


def _share(adapter: Adapter, edits: dict[str, Edit], embedding: str, head: str) -> dict[str, Edit]:
    """The edits of a tied base's two ends; PEFT stores a change of both under one name or under two."""
    ends = {name: edits.get(name, Edit()) for name in (embedding, head)}
    for here, there in ((embedding, head), (head, embedding)):
        stored = adapter.replacements.get(here)
        if stored is not None and not stored.own_copy and ends[there].replacement is None:
            ends[there] = replace(ends[there], replacement=stored.name)
    if ends[head] == replace(ends[embedding], rows=None):
        ends[head] = ends[embedding]
    if _is_transpose(adapter, ends[embedding].lora, ends[head].lora):
        ends[head] = replace(ends[head], lora=ends[embedding].lora, flipped=True)
    return ends


def _is_transpose(adapter: Adapter, embedding: Lora | None, head: Lora | None) -> bool:
    """Whether the two are one update, as ensure_weight_tying stores it: A and B exchanged and transposed."""
    import torch

    if embedding is None or head is None or embedding.scaling != head.scaling or "magnitude" in head.parts:
        return False
    a, b = (adapter.weights.tensor(name) for name in matrices(embedding))
    head_a, head_b = (adapter.weights.tensor(name) for name in matrices(head))
    return torch.equal(head_a, b.T) and torch.equal(head_b, a.T)


def _differ(fit: _Fit, embedding: str, head: str, dtype: str) -> bool:
    """Whether the two ends of a tied base come out different."""
    import torch

    if fit.edits[embedding] == fit.edits[head]:
        return False
    weight = fit.base.weights.tensor(embedding)
    ends = (edited(weight, fit.edits[name], fit.adapter) for name in (embedding, head))
    return not torch.equal(*(end.to(getattr(torch, dtype)) for end in ends))


def _vocab_size(fit: _Fit, embedding: str, head: str, untied: bool) -> int | None:
    """The new number of embedding rows, None if unchanged; raises InputError where two counts disagree."""
    n_base, n_rows = fit.base_shapes[embedding][0], fit.shape(embedding)[0]
    where = f"{fit.adapter.path}: with the base {fit.base.path}, which has {n_base} tokens,"
    if (untied or not fit.base.tied) and fit.shape(head)[0] != n_rows:
        raise InputError(
            f"{where} the input embedding has {n_rows} rows and the output head {fit.shape(head)[0]}; "
            "give the adapter's own base as --base"
        )
    token = highest_token(fit.adapter.path)
    if token is not None and token.id >= n_rows:
        raise InputError(
            f'{where} the adapter\'s tokenizer has the token "{token.text}" with the id {token.id}, and no '
            "resized embeddings come with it; give the adapter's own base as --base"
        )
    return None if n_rows == n_base else n_rows
