"""The decoder layers of a loaded model, made to call the residual operation on what they return."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from morfi.engine.architectures import ARCHITECTURES
from morfi.engine.steering import MAX_ENTRIES
from morfi.serve.plugin import operation
from morfi.serve.plugin.device_work import DeviceWork
from morfi.serve.plugin.shared_layers import SharedLayers
from morfi.serve.plugin.step import ResidualState


class SteeredLayer:
    """Mixed in before a decoder layer's own class; its forward is looked up there."""

    morfi_layer: int

    def forward(
        self,
        positions: torch.Tensor,
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The layer's hidden states and residual, whose sum is the residual stream after it."""
        layer, own = self.morfi_layer, super().forward  # type: ignore[misc]
        if torch.compiler.is_compiling():
            hidden, rest = own(positions, hidden_states, residual, *args, **kwargs)
            torch.ops.morfi.residual(hidden, rest, layer)
            return hidden, rest
        shared = operation.shared_layers()
        if shared is None:
            hidden, rest = own(positions, hidden_states, residual, *args, **kwargs)
        else:
            narrow = shared.enter(layer, positions, hidden_states, residual)
            hidden, rest = shared.leave(layer, *own(*narrow, *args, **kwargs))
        operation.apply(hidden, rest, layer)
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
        shared_layers=_shared_layers(runner),
    )


def _shared_layers(runner: Any) -> SharedLayers | None:
    """For a model that runs layer by layer on a CPU, all of it in this worker, where tokens say all."""
    inner, config = runner.get_model().model, runner.vllm_config
    model = config.model_config
    layer_by_layer = type(runner) is CPUModelRunner and model.enforce_eager
    whole = config.parallel_config.pipeline_parallel_size == 1 and config.kv_transfer_config is None
    # With adapters, or embeddings in place of tokens, requests of the same tokens differ.
    by_tokens = config.lora_config is None and not model.enable_prompt_embeds
    if not (layer_by_layer and whole and by_tokens):
        return None

    def builders() -> dict[str, Any]:
        groups = [group for groups in runner.attn_groups for group in groups]
        return {name: group.get_metadata_builder() for group in groups for name in group.layer_names}

    return SharedLayers([layer.self_attn.attn for layer in inner.layers], builders)
