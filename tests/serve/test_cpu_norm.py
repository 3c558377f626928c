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


@pytest.mark.parametrize("n", [1, 7, 64])
def test_a_bfloat16_is_rounded_to_the_nearest_where_it_is_taken(n: int) -> None:
    if torch.bfloat16 not in cpu_norm._DTYPES:
        pytest.skip("this processor has no bfloat16 instructions")
    generator = torch.Generator().manual_seed(n)
    x, residual = (torch.randn(n, 576, generator=generator).bfloat16() for _ in range(2))
    weight = torch.randn(576, generator=generator).bfloat16()
    total = x + residual
    normed, summed = cpu_norm.fused_add_rms_norm.impl_fn(x.clone(), residual.clone(), weight, EPSILON)
    assert torch.equal(summed, total)
    for found, before in ((normed, total), (cpu_norm.rms_norm.impl_fn(x, weight, EPSILON), x)):
        nearest = expected(before, weight).bfloat16()
        assert (found == nearest).double().mean() > 0.95  # the fused one squares sums before they are rounded
        assert torch.allclose(found.double(), nearest.double(), rtol=2**-7, atol=0)


def test_what_the_kernels_cannot_take_goes_to_vllms_default() -> None:
    x, weight = torch.randn(4, 32), torch.randn(32)

    def chosen(x: torch.Tensor, weight: torch.Tensor | None, size: int | None = None) -> str:
        with ir.ops.rms_norm.set_priority([CPU_NORM, "native"]):
            return str(ir.ops.rms_norm.dispatch(x, weight, EPSILON, size).provider)

    assert chosen(x, weight) == CPU_NORM
    assert chosen(torch.randn(4, 64)[:, :32], weight) == "native"
    assert chosen(x, weight.bfloat16()) == "native"
    rounds = torch.bfloat16 in cpu_norm._DTYPES
    assert chosen(x.bfloat16(), weight.bfloat16()) == (CPU_NORM if rounds else "native")
    assert chosen(x.half(), weight.half()) == "native"
    assert chosen(x, None) == "native"
    assert chosen(torch.randn(4, 24), torch.randn(24)) == "native"
    assert chosen(x, weight, 16) == "native"
