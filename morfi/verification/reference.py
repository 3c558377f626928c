"""The same model in transformers, steered by forward hooks on its decoder layers: the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.engine.decoder import layers_of, residual_stream
from morfi.engine.steering import Steering, spans, within
from morfi.errors import InputError
from morfi.verification.arithmetic import steered

if TYPE_CHECKING:
    import torch

    from morfi.engine.directions import Direction


@dataclass(frozen=True, eq=False, slots=True)
class Streams:
    """One sequence through the model: the residual stream after each layer, and what is said next."""

    before: tuple[torch.Tensor, ...]  # float32 [n, d_model] for each layer, before it is steered there
    after: tuple[torch.Tensor, ...]  # the same after it
    logits: torch.Tensor  # float32 [n, n_vocab]
    n_changed: tuple[int, ...]  # positions that each steering changed


@dataclass(frozen=True, eq=False, slots=True)
class Reference:
    """A causal language model of transformers; `layers` hand on the residual stream.

    >>> reference = load_reference(Path("my-model"), "float32")
    >>> streams = reference.run([504, 3575, 282])
    """

    model: Any
    layers: Sequence[Any]

    @property
    def n_vocab(self) -> int:
        """How many token ids the input embedding has."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    def run(
        self,
        token_ids: Sequence[int],
        n_prompt: int | None = None,
        steering: Sequence[Steering] = (),
        directions: Mapping[str, Direction] | None = None,
    ) -> Streams:
        """The streams of `token_ids`, of which `n_prompt` (all, by default) are the prompt.

        `directions` are those that the steerings name.
        """
        import torch

        n = len(token_ids)
        n_prompt = n if n_prompt is None else n_prompt
        named = [(one, (directions or {})[str(one.direction)]) for one in steering]
        before: list[torch.Tensor] = [torch.empty(0)] * len(self.layers)
        after = list(before)
        n_changed = [0] * len(steering)

        def hook(layer: int) -> Callable[..., Any]:
            here = [number for number, one in enumerate(steering) if one.layer == layer]

            def steer(_module: Any, _inputs: Any, output: Any) -> Any:
                hidden = residual_stream(output)
                if hidden.dim() != 3 or len(hidden) != 1:
                    shape, name = list(hidden.shape), type(self.model).__name__
                    raise InputError(
                        f"the layers of {name} hand on {shape}, which is no residual stream; nothing can be "
                        "compared with it"
                    )
                x = before[layer] = hidden[0].float().clone()
                result = x.clone()
                for numbers, rows in _active({k: steering[k] for k in here}, n_prompt, n):
                    found = steered(x[rows], [named[k] for k in numbers])
                    result[rows] = found.x
                    for k, changed in zip(numbers, found.changed, strict=True):
                        n_changed[k] += int(changed.sum())
                made = result.to(hidden.dtype)
                after[layer] = made.float()
                return (made[None], *output[1:]) if isinstance(output, tuple) else made[None]

            return steer

        handles = [layer.register_forward_hook(hook(index)) for index, layer in enumerate(self.layers)]
        try:
            with torch.no_grad():
                ids = torch.tensor([list(token_ids)], device=self.model.device)
                logits = self.model(ids, use_cache=False).logits[0].float()
        finally:
            for handle in handles:
                handle.remove()
        return Streams(
            tuple(one.cpu() for one in before),
            tuple(one.cpu() for one in after),
            logits.cpu(),
            tuple(n_changed),
        )


def load_reference(model_dir: Path, dtype: str, device: str = "cpu") -> Reference:
    """The model in `model_dir` in `dtype`; raises what transformers raises."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False
    )
    return reference_of(model.eval().to(device))


def reference_of(model: Any) -> Reference:
    """The reference that a loaded model of transformers is; raises InputError for one of unknown form."""
    return Reference(model, list(layers_of(model)))


def _active(
    steering: Mapping[int, Steering], n_prompt: int, n: int
) -> list[tuple[tuple[int, ...], torch.Tensor]]:
    """The rows of a sequence of `n` at which the same of these steerings act, with their numbers."""
    import torch

    acting: list[list[int]] = [[] for _ in range(n)]
    for number, one in steering.items():
        for start, stop in within(spans(one.positions, n_prompt), 0, n):
            for place in range(start, stop):
                acting[place].append(number)
    rows: dict[tuple[int, ...], list[int]] = {}
    for place, numbers in enumerate(acting):
        if numbers:
            rows.setdefault(tuple(numbers), []).append(place)
    return [(numbers, torch.tensor(places)) for numbers, places in rows.items()]
