"""The decoder layers of a loaded model, made to call the residual operation on what they return."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from vllm.distributed import get_tensor_model_parallel_rank

from morfi.serve import residual
from morfi.serve.admission import ARCHITECTURES
from morfi.serve.device_work import DeviceWork
from morfi.serve.residual import ResidualState
from morfi.steering import MAX_ENTRIES


class SteeredLayer:
    """Mixed in before a decoder layer's own class; its forward is looked up there."""

    morfi_layer: int

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's hidden states and residual, whose sum is the residual stream after it."""
        hidden, rest = super().forward(*args, **kwargs)  # type: ignore[misc]
        if torch.compiler.is_compiling():
            torch.ops.morfi.residual(hidden, rest, self.morfi_layer)
        else:
            residual.apply(hidden, rest, self.morfi_layer)
        return hidden, rest


def attach(runner: Any) -> ResidualState | None:
    """Makes the decoder layers of the runner's model steerable; None for an architecture that is not known.

    Raises RuntimeError where a known architecture's layers are not what they were in the supported vLLM.
    """
    model = runner.get_model()
    if type(model).__name__ not in ARCHITECTURES:
        return None
    inner = model.model
    steered: dict[type, type] = {}
    for index in range(inner.start_layer, inner.end_layer):
        layer = inner.layers[index]
        parameters = list(inspect.signature(type(layer).forward).parameters)
        if parameters[:4] != ["self", "positions", "hidden_states", "residual"]:
            raise RuntimeError(
                f"morfi cannot steer {type(layer).__name__} of this vLLM: its forward takes {parameters}"
            )
        own = type(layer)
        if own not in steered:
            steered[own] = type(f"Steered{own.__name__}", (SteeredLayer, own), {})
        layer.__class__ = steered[own]
        layer.morfi_layer = index
    config = runner.vllm_config
    d_model = config.model_config.get_hidden_size()
    scheduler = config.scheduler_config
    on_gpu = runner.device.type != "cpu"
    return ResidualState(
        range(inner.start_layer, inner.end_layer),
        d_model,
        scheduler.max_num_seqs * MAX_ENTRIES,
        runner.device,
        DeviceWork(inner.end_layer, scheduler.max_num_batched_tokens, d_model, runner.device)
        if on_gpu
        else None,
        keeps=get_tensor_model_parallel_rank() == 0,
    )
