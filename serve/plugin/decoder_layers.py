"""The decoder layers of a loaded model, made to call the residual operation on what they return."""

from __future__ import annotations

from typing import Any

import torch
from vllm.distributed import get_tensor_model_parallel_rank
from vllm.model_executor.layers.attention import Attention
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from morfi.engine.steering import MAX_ENTRIES
from morfi.serve.plugin import operation
from morfi.serve.plugin.device_work import DeviceWork
from morfi.serve.plugin.shared_layers import SharedLayers
from morfi.serve.plugin.step import ResidualState
from morfi.serve.plugin.structure import Structure, parts, structure_of


class SteeredLayer:
    """Mixed in before a decoder layer's own class; its forward is looked up there."""

    morfi_layer: int
    morfi_line: torch.Tensor  # as in `ResidualState.line_of`
    morfi_is_sum: bool  # as in `Structure`

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The value that the layer returns, with the residual stream in it steered."""
        layer, own = self.morfi_layer, super().forward  # type: ignore[misc]
        if torch.compiler.is_compiling():
            output = own(*args, **kwargs)
            torch.ops.morfi.residual(*_stream(output, is_sum=self.morfi_is_sum), self.morfi_line)
            return output
        shared = operation.shared_layers()
        if shared is None:
            output = own(*args, **kwargs)
        else:
            args, kwargs = shared.enter(layer, args, kwargs)
            output = shared.leave(layer, own(*args, **kwargs))
        operation.apply(*_stream(output, is_sum=self.morfi_is_sum), layer)
        return output


def _stream(output: Any, *, is_sum: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The two tensors of rows whose sum is the residual stream, or the one that is; views of `output`."""
    hidden, rest = parts(output)
    width = hidden.shape[-1]  # transformers' own layers have a batch of one
    return hidden.view(-1, width), rest.view(-1, width) if is_sum and rest is not None else None


def attach(runner: Any) -> ResidualState:
    """Makes the decoder layers of the runner's model steerable; raises InputError where they cannot be."""
    found = structure_of(runner)
    steered: dict[type, type] = {}
    for index in found.own:
        layer: Any = found.layers[index]
        own = type(layer)
        if own not in steered:
            steered[own] = type(f"Steered{own.__name__}", (SteeredLayer, own), {})
        layer.__class__ = steered[own]
        layer.morfi_layer, layer.morfi_is_sum = index, found.is_sum
    config = runner.vllm_config
    d_model = config.model_config.get_hidden_size()
    scheduler = config.scheduler_config
    on_gpu = runner.device.type != "cpu"
    state = ResidualState(
        found.own,
        d_model,
        scheduler.max_num_seqs * MAX_ENTRIES,
        runner.device,
        DeviceWork(found.own.stop, scheduler.max_num_batched_tokens, d_model, runner.device)
        if on_gpu
        else None,
        keeps=get_tensor_model_parallel_rank() == 0,
        shared_layers=_shared_layers(runner, found),
    )
    for index in found.own:
        found.layers[index].register_buffer("morfi_line", state.line_of(index), persistent=False)
    return state


def _shared_layers(runner: Any, found: Structure) -> SharedLayers | None:
    """For a model that runs layer by layer on a CPU, all of it in this worker, where tokens say all."""
    config = runner.vllm_config
    model = config.model_config
    layer_by_layer = type(runner) is CPUModelRunner and model.enforce_eager and found.by_rows
    whole = config.parallel_config.pipeline_parallel_size == 1 and config.kv_transfer_config is None
    # With adapters, pictures, or embeddings in place of tokens, requests of the same tokens differ.
    has_others = model.enable_prompt_embeds or model.is_multimodal_model
    by_tokens = config.lora_config is None and not has_others
    if not (layer_by_layer and whole and by_tokens):
        return None
    attention = [
        [module for module in layer.modules() if isinstance(module, Attention)] for layer in found.layers
    ]
    if any(len(one) != 1 or one[0].kv_sharing_target_layer_name for one in attention):
        return None

    def builders() -> dict[str, Any]:
        groups = [group for groups in runner.attn_groups for group in groups]
        return {name: group.get_metadata_builder() for group in groups for name in group.layer_names}

    return SharedLayers([one for (one,) in attention], builders)
