"""Which hidden states the output head of a model in training computes logits of."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextlib.contextmanager
def head_reads(model: Any, choose: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """For the block, `model` computes the logits of `choose(hidden)` alone.

    `hidden` and what is chosen are [n_rows, n_columns, d_model]. The product with a vocabulary of 100,000 and
    more would cost as much as some layers; what the architecture does to logits (soft-capping in Gemma 2)
    follows as usual. What is chosen is made contiguous: on CPUs torch's bfloat16 product of a slice takes
    hundreds of times as long.
    """

    def keep(_: Any, hidden: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (choose(hidden[0]).contiguous(),)

    hook = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield
    finally:
        hook.remove()
