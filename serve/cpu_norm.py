"""RMS norm on CPUs by vLLM's own C++ kernels, which it builds for them but offers to GPUs only.

What vLLM takes on a CPU otherwise, a row of torch operations, costs a tenth of a batch's time or more.
Importing this module makes the kernels known as PROVIDER; a process that serves does so before it builds the
model. The signatures are vLLM's.
"""
# ruff: noqa: ARG001

import torch
from vllm import ir
from vllm.platforms import current_platform

PROVIDER = "morfi_cpu"

current_platform.import_kernels()
_BUILT = current_platform.is_cpu() and hasattr(torch.ops._C, "fused_add_rms_norm")


def _rounds() -> bool:
    """Whether the kernels round a bfloat16: without its instructions they cut the last bits of a sum off."""
    x = torch.linspace(-3, 3, 960).reshape(10, 96).bfloat16()
    result = torch.empty_like(x)
    torch.ops._C.rms_norm(result, x, torch.ones(96, dtype=x.dtype), 1e-5)
    exact = x.double() * (x.double().pow(2).mean(1, keepdim=True) + 1e-5).rsqrt()
    return bool((result.double() - exact).abs().le(exact.abs() * 2**-8).all())


_LANES = 16  # a row is so many times something
_DTYPES = (torch.float32, torch.bfloat16) if _BUILT and _rounds() else (torch.float32,)


def _takes(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    exact = x.dtype in _DTYPES
    plain = variance_size is None and weight is not None and weight.dtype == x.dtype
    return exact and plain and x.is_contiguous() and x.shape[-1] % _LANES == 0


def _takes_both(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    same = x_residual.dtype == x.dtype and x_residual.is_contiguous()
    return same and _takes(x, weight, epsilon, variance_size)


@ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_takes, supported=_BUILT)  # type: ignore[untyped-decorator]
def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> torch.Tensor:
    """The norm of each row of `x` [n_tokens, d_model], times `weight` [d_model]."""
    result = torch.empty_like(x)
    torch.ops._C.rms_norm(result, x, weight, epsilon)
    return result


@ir.ops.fused_add_rms_norm.register_impl(  # type: ignore[untyped-decorator]
    PROVIDER, supports_args=_takes_both, supported=_BUILT, inplace=True
)
def fused_add_rms_norm(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`x + x_residual` in place of the residual, and its norm in place of `x`."""
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual
