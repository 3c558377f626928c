"""vLLM's C++ norms on a CPU against their definition, and when they are not taken."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morfi.serve.settings import CPU_NORM, prepare_process

prepare_process(gpu=False, verbose=False)
ir = pytest.importorskip("vllm.ir")
cpu_norm = pytest.importorskip("morfi.serve.cpu_norm")

EPSILON = 1e-5


def expected(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Zhang and Sennrich 2019, equation 4, in float64."""
    exact = x.double()
    return exact / torch.sqrt(exact.pow(2).mean(-1, keepdim=True) + EPSILON) * weight.double()


def close(result: torch.Tensor, exact: torch.Tensor) -> bool:
    return torch.allclose(result.double(), exact, rtol=1e-5, atol=1e-5)  # a float32 has 24 bits


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.sampled_from([16, 48, 576]))
def test_the_norms_are_what_their_definition_says(n: int, d_model: int) -> None:
    generator = torch.Generator().manual_seed(n)
    x, residual = (torch.randn(n, d_model, generator=generator) for _ in range(2))
    weight = torch.randn(d_model, generator=generator)
    assert close(cpu_norm.rms_norm.impl_fn(x, weight, EPSILON), expected(x, weight))
    total = x + residual
    normed, summed = cpu_norm.fused_add_rms_norm.impl_fn(x.clone(), residual.clone(), weight, EPSILON)
    assert close(normed, expected(total, weight))
    assert torch.equal(summed, total)


def test_what_the_kernels_cannot_take_goes_to_vllms_default() -> None:
    x, weight = torch.randn(4, 32), torch.randn(32)

    def chosen(x: torch.Tensor, weight: torch.Tensor | None, size: int | None = None) -> str:
        with ir.ops.rms_norm.set_priority([CPU_NORM, "native"]):
            return str(ir.ops.rms_norm.dispatch(x, weight, EPSILON, size).provider)

    assert chosen(x, weight) == CPU_NORM
    assert chosen(torch.randn(4, 64)[:, :32], weight) == "native"
    assert chosen(x, weight.bfloat16()) == "native"
    assert chosen(x.bfloat16(), weight.bfloat16()) == "native", "the kernels truncate there"
    assert chosen(x, None) == "native"
    assert chosen(x, weight, 16) == "native"
