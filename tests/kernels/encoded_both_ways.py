"""Run by test_encode_triton.py: both ways to encode beside their reference.

With TRITON_INTERPRET=1 in the interpreter, else on a GPU.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from morfi.kernels import compaction, encode, encode_fused, encode_library
from morfi.kernels.encoder import ACTIVATIONS, Encoder, Nonzeros, encode_reference, prepare, tiles

# Questions, d_model, d_sae and tile: odd ones, more than a block, and sixteens that need no padding.
SHAPES = ((53, 24, 77, 60), (130, 72, 300, 300), (1, 8, 3, 200), (144, 64, 288, 144))
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WAYS = (encode_fused, encode_library)
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def widen_bfloat16() -> None:
    """Lets the interpreter multiply bfloat16: it holds their bits as integers, and would multiply those."""
    plain = interpreter.InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain(self, _widened(a), _widened(b), *rest)

    interpreter.InterpreterBuilder.create_dot = create_dot


def _widened(handle: Any) -> Any:
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    bits = handle.data.astype(np.uint32) << 16  # the upper half of the same float32
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


def make_encoder(activation: str, shape: tuple[int, int, int, int], draw: Callable[..., Any]) -> Encoder:
    """An encoder of numbers that `draw` gives for a shape."""
    _, d_model, d_sae, _ = shape
    is_gated = activation == "gated"
    return Encoder(
        draw(d_model, d_sae),
        draw(d_sae),
        activation,
        threshold=draw(d_sae) if activation == "jumprelu" else None,
        k=min(5, d_sae) if activation == "topk" else None,
        r_mag=draw(d_sae) * 0.1 if is_gated else None,
        b_mag=draw(d_sae) if is_gated else None,
    )


def dense(found: Nonzeros, n: int) -> torch.Tensor:
    """float32 [n, T]; stops unless the non-zeros come in order."""
    assert (found.starts.dtype, found.questions.dtype) == (torch.int64, torch.int64)
    questions, own = found.questions.cpu(), found.values.cpu()
    values = torch.zeros(len(found.starts) - 1, n)
    for row, (start, stop) in enumerate(itertools.pairwise(found.starts.tolist())):
        assert questions[start:stop].diff().gt(0).all()
        values[row, questions[start:stop]] = own[start:stop]
    return values.T


def encoded(x: torch.Tensor, encoder: Encoder, tile: int, share: float = 1 / 64) -> list[torch.Tensor]:
    """All latents of prepared x, float32 [n, d_sae], by each way."""
    x, encoder = x.to(DEVICE), encoder.to(DEVICE)
    limits = encode.row_limits(x, encoder, tile)
    for way in WAYS if limits is not None else ():
        pre = torch.cat([way.encode_dense(x, encoder, latents) for latents in tiles(encoder, tile)], 1)
        plain = x.float() @ encoder.W_enc.float() + encoder.b_enc
        torch.testing.assert_close(pre, plain, rtol=1e-4, atol=1e-4)
    return [
        torch.cat(
            [
                dense(compaction.start_tile(way.launch, x, encoder, latents, limits, share)(), len(x))
                for latents in tiles(encoder, tile)
            ],
            1,
        )
        for way in WAYS
    ]


def at_random(
    activation: str,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    bias: float,
    share: float = 1 / 64,
) -> tuple[int, int]:
    """How many latents the ways keep of normal numbers, and how many only one of them keeps.

    Stops where those are further from their thresholds than numbers are rounded.
    """
    n, d_model, _, tile = shape
    generator = torch.Generator().manual_seed(2)
    encoder = make_encoder(activation, shape, lambda *size: torch.randn(size, generator=generator))
    encoder = replace(encoder, W_enc=encoder.W_enc.to(dtype), b_enc=encoder.b_enc + bias)
    x = torch.randn(n, d_model, generator=generator).to(dtype)
    fused, library = encoded(x, encoder, tile, share)
    rounding = 2**-22 * (x.float().abs() @ encoder.W_enc.float().abs() + abs(bias) + 4)
    expected = encode_reference(x, encoder)
    for one in (fused, library):
        alone = (one > 0) != (expected > 0)
        assert bool(((one - expected).abs() <= 8 * rounding)[~alone].all()), (activation, shape, dtype)
        assert bool((margin(x, encoder).abs() <= 8 * rounding)[alone].all()), (activation, shape, dtype)
    if activation == "topk" and bias > 0:
        assert int((fused > 0).sum()) == n * (encoder.k or 0)
    return int((fused > 0).sum()), int(((fused > 0) != (library > 0)).sum())


def margin(x: torch.Tensor, encoder: Encoder) -> torch.Tensor:
    """How far from its threshold each latent is, float64 [n, d_sae]: the nearer one, where it has two."""
    p = x.double() @ encoder.W_enc.double()
    pre = p + encoder.b_enc
    others = [pre]
    if encoder.threshold is not None:
        others = [pre - encoder.threshold.clamp_min(0)]
    if encoder.r_mag is not None and encoder.b_mag is not None:
        others.append(p * encoder.r_mag.exp() + encoder.b_mag)
    if encoder.k is not None and encoder.k < encoder.d_sae:
        best = pre.topk(encoder.k + 1, 1).values
        others += [pre - best[:, -2:-1], pre - best[:, -1:]]
    return torch.stack(others).abs().amin(0)


def exactly(activation: str, dtype: torch.dtype, normalization: str) -> int:
    """How many latents are kept of small integers, whose sums need no rounding.

    Stops unless both ways, a CPU's and the reference give the same bits.
    """
    shape = (75, 64, 90, 50)
    generator = torch.Generator().manual_seed(5)
    encoder = make_encoder(
        activation, shape, lambda *size: torch.randint(-2, 3, size, generator=generator).float()
    )
    encoder = replace(encoder, W_enc=encoder.W_enc.to(dtype), normalization=normalization)
    if encoder.r_mag is not None:
        encoder = replace(encoder, r_mag=torch.zeros_like(encoder.r_mag))
    # All of a row are as large, so that its norm is an integer.
    signs = 2 * torch.randint(0, 2, shape[:2], generator=generator) - 1
    x = prepare(signs * torch.randint(1, 4, (shape[0], 1), generator=generator).float(), encoder)
    fused, library = encoded(x, encoder, shape[3])
    limits = encode.row_limits(x, encoder, shape[3])
    on_cpu = dense(encode.start_tile(x, encoder, slice(0, encoder.d_sae), limits)(), len(x))
    assert torch.equal(fused, library)
    assert torch.equal(fused, on_cpu)
    if activation != "topk":  # which leaves it open what becomes of ties
        assert torch.equal(fused, encode_reference(x, replace(encoder, normalization="none")))
    return int((fused > 0).sum())


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)  # fills what `torch.empty` gives with NaN
    assert torch.empty(3).isnan().all()
    if DEVICE == "cpu":
        widen_bfloat16()
    cases = [
        # The smallest shape would keep nothing where latents are rare.
        (activation, shape, dtype, -4.0 if shape[0] > 1 and (number + number // 4) % 2 == 0 else 4.0)
        for number, (activation, dtype, shape) in enumerate(itertools.product(ACTIVATIONS, DTYPES, SHAPES))
    ]
    encode_library.WORKSPACE = 4096  # so that questions come in several parts
    norms = ("none", "constant_norm_rescale")
    found = {
        "random": [at_random(*case) for case in cases],
        "silent": [at_random("relu", shape, torch.float32, -100.0) for shape in SHAPES[:2]],
        "empty": [at_random("jumprelu", (0, 24, 77, 60), torch.float32, 4.0)],
        "crowded": [at_random("relu", (144, 64, 288, 144), torch.bfloat16, 4.0, share=0.0)],
        "exact": [exactly(*case) for case in itertools.product(ACTIVATIONS, DTYPES, norms)],
    }
    json.dump(found, sys.stdout)
