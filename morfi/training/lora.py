"""LoRA on a loaded base: put on and taken off, run in one pass a layer, read and written as tensors.

Imports torch and peft, so only what trains imports this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor

from morfi.checkpoints.architecture import linear_leaves
from morfi.training.config import ALL_LINEAR, TrainConfig

_ADAPTER = "default"


def attach_lora(base: Any, config: TrainConfig, seed: int) -> Any:
    """`base` as a PEFT model with fresh LoRA matrices drawn from `seed`; only they are trainable."""
    targets: str | list[str] = ALL_LINEAR if config.targets == (ALL_LINEAR,) else list(config.targets)
    model = _with_lora(base, config, targets, seed)
    if model.peft_config[_ADAPTER].target_parameters:
        # Bare parameters, such as those of experts, whose LoRA is not merged: only the linear layers.
        base = model.unload()
        model = _with_lora(base, config, linear_leaves(base), seed)
    # Whatever dtype the base has, so that small updates are not lost.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if type(module) is LoraLinear and type(module.base_layer) is torch.nn.Linear:
            module.forward = MethodType(_forward, module)
    return model


def _with_lora(base: Any, config: TrainConfig, targets: str | list[str], seed: int) -> Any:
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=targets,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    return get_peft_model(base, lora)


def detach_lora(model: Any) -> Any:
    """The base of `model` as it was before `attach_lora`; its weights were never touched."""
    base = model.unload()
    base.gradient_checkpointing_disable()
    return base


def adapter_tensors(model: Any) -> dict[str, Tensor]:
    """Copies on the CPU of the LoRA tensors, under the names PEFT saves them by."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}


def load_adapter_tensors(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Gives the LoRA matrices of `model` the values that `adapter_tensors` read."""
    set_peft_model_state_dict(model, dict(tensors))


@dataclass(slots=True)
class _Saved:
    """The context that one layer's backward pass needs beside its saved tensors."""

    shape: torch.Size
    scaling: float


class _LinearWithLora(torch.autograd.Function):
    """y = x W^T + b + scaling (x A^T) B^T, its products accumulated in place, all in the dtype of x.

    PEFT computes the same with two more passes over y forward and two backward, and in float32.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes them so
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])  # [n, d_in]
        a, b = a.to(x.dtype), b.to(x.dtype)  # [r, d_in], [d_out, r]
        inner = flat @ a.T  # [n, r]
        y = torch.nn.functional.linear(flat, weight, bias)
        y.addmm_(inner, b.T, alpha=scaling)
        ctx.save_for_backward(flat, inner, weight, a, b)
        ctx.saved = _Saved(x.shape, scaling)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        flat, inner, weight, a, b = ctx.saved_tensors
        grad = grad.reshape(-1, grad.shape[-1])  # [n, d_out]
        grad_inner = (grad @ b).mul_(ctx.saved.scaling)  # [n, r]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            grad_x.addmm_(grad_inner, a)
            grad_x = grad_x.view(ctx.saved.shape)
        grad_a = (grad_inner.T @ flat).float()
        grad_b = (grad.T @ inner).mul_(ctx.saved.scaling).float()
        return grad_x, None, None, grad_a, grad_b, None


def _forward(layer: Any, x: Tensor) -> Tensor:
    y: Tensor = _LinearWithLora.apply(
        x,
        layer.base_layer.weight,
        layer.base_layer.bias,
        layer.lora_A[_ADAPTER].weight,
        layer.lora_B[_ADAPTER].weight,
        layer.scaling[_ADAPTER],
    )  # type: ignore[no-untyped-call]
    return y
