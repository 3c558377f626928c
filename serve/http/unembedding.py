"""Tokens that a direction of the residual stream makes likelier or less likely, by the output head."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.checkpoints.model_files import ModelFiles, open_model

if TYPE_CHECKING:
    import torch

N_TOKENS = 10
_ROWS = 8192  # of the head, at a time
_NORM = "model.norm"


@dataclass(frozen=True, slots=True)
class TokenEffect:
    """A token and the change of its logit."""

    token_id: int
    token: str
    logit: float


@dataclass(frozen=True, slots=True)
class Effects:
    """The tokens whose logits rise and fall most, the most changed first."""

    promoted: list[TokenEffect]
    suppressed: list[TokenEffect]


class Unembedding:
    """The final norm and the output head in a model's folder, which stay in its files."""

    def __init__(self, model_dir: Path, tokenizer: Any) -> None:
        self._model_dir, self._tokenizer = model_dir, tokenizer

    @functools.cached_property
    def _files(self) -> ModelFiles:
        return open_model(self._model_dir)

    @functools.cached_property
    def _norm(self) -> torch.nn.Module | None:
        """The final norm as transformers has it, in float32; None where it is not at its usual place."""
        import torch

        layout = self._files.layout
        try:
            norm: torch.nn.Module = self._files.empty_model().get_submodule(_NORM)
        except AttributeError:
            return None
        names = {name: layout.tensor_of(f"{_NORM}.{name}") for name, _ in norm.named_parameters()}
        tensors = {
            name: self._files.weights.tensor(tensor) for name, tensor in names.items() if tensor is not None
        }
        norm = norm.to_empty(device="cpu").float()
        with torch.no_grad():
            norm.load_state_dict(tensors)
        return norm

    def effects(self, unit: torch.Tensor) -> Effects:
        """The tokens with the largest and smallest logits of `unit` [d_model], a stream of length 1, alone.

        Final norm and output head see nothing else: to first order, what the logits of any stream change by
        where it moves by its own norm along `unit`. None for a model whose final norm is somewhere else.
        """
        import torch

        files, norm = self._files, self._norm
        head = files.input_embedding if files.tied else files.output_head
        if norm is None or head is None or head not in files.weights.tensors:
            return Effects([], [])
        with torch.no_grad():
            v = norm(unit.float()) - norm(torch.zeros(len(unit)))
        rows = files.weights.tensor(head)[: len(self._tokenizer)]
        logits = torch.cat([part.float() @ v for part in torch.split(rows, _ROWS)])
        return Effects(self._most(logits, largest=True), self._most(logits, largest=False))

    def _most(self, logits: torch.Tensor, *, largest: bool) -> list[TokenEffect]:
        best = logits.topk(min(N_TOKENS, len(logits)), largest=largest)
        return [
            TokenEffect(one, self._tokenizer.decode([one]), value)
            for one, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
