"""Encoding on a GPU by one kernel: a matrix product whose epilogue activates and compacts, so that only
non-zeros leave.

A program computes a block of pre-activations. One atomic addition for each of the few that are kept (about
25 in a block of 128 x 128 where 50 of 32,768 latents fire) needs no prefix sum over the block, which would
need more registers than there are.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from morfi.kernels.compaction import Epilogue, Kept, activated
from morfi.kernels.encoder import Encoder

# The largest blocks that spill no register on sm_80 and sm_90, see bench/trends_resources.py.
_HALVES = {"BLOCK_N": 128, "BLOCK_T": 256, "BLOCK_K": 64, "num_warps": 8, "num_stages": 4}
_FLOATS = {"BLOCK_N": 128, "BLOCK_T": 128, "BLOCK_K": 32, "num_warps": 8, "num_stages": 3}


@triton.jit
def _halves(block):
    """The left and the right half of the columns of a block, which stay in their threads' registers."""
    n: tl.constexpr = block.shape[0]
    width: tl.constexpr = block.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(block, [n, 2, width]), [0, 2, 1]))


@triton.jit
def _store(
    p,
    rows,
    first_column,
    scale,
    shift,
    gate,
    floor,
    limits,
    n_kept,
    places,
    values,
    n,
    n_latents,
    capacity,
    IS_GATED: tl.constexpr,
    HAS_LIMITS: tl.constexpr,
    IS_DENSE: tl.constexpr,
):
    """Activates a block of products and stores all of it, or what is kept."""
    columns = first_column + tl.arange(0, p.shape[1])
    is_row, is_column = rows < n, columns < n_latents
    if IS_DENSE:
        inside = is_row[:, None] & is_column[None, :]
        z = p + tl.load(shift + columns, mask=is_column, other=0.0)[None, :]
        tl.store(values + rows.to(tl.int64)[:, None] * n_latents + columns[None, :], z, mask=inside)
    else:
        z, keep = activated(
            p, rows, columns, is_row, is_column, scale, shift, gate, floor, limits, IS_GATED, HAS_LIMITS
        )  # fmt: skip
        at = tl.atomic_add(n_kept + tl.zeros(p.shape, dtype=tl.int32), 1, mask=keep, sem="relaxed")
        keep &= at < capacity
        tl.store(places + at, columns[None, :] * n + rows[:, None], mask=keep)
        tl.store(values + at, z, mask=keep)


@triton.jit(do_not_specialize=["n", "n_latents", "capacity"])
def encode_kernel(
    x,
    weights,
    scale,
    shift,
    gate,
    floor,
    limits,
    n_kept,
    places,
    values,
    n,
    n_latents,
    capacity,
    d_model,
    n_columns,
    x_stride,
    weights_stride,
    IS_GATED: tl.constexpr,
    HAS_LIMITS: tl.constexpr,
    IS_DENSE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One program a block [BLOCK_N, BLOCK_T] of x [n, d_model] @ weights [d_model, n_columns].

    Columns from n_latents on only fill up the last sixteen. `values` takes all pre-activations, [n,
    n_latents], if IS_DENSE, else those that are kept, with latent * n + question in `places`.
    """
    # Blocks of GROUP rows of questions go together, so that the weights they share stay in the L2 cache.
    n_down, n_across = tl.cdiv(n, BLOCK_N), tl.cdiv(n_latents, BLOCK_T)
    program = tl.program_id(0)
    first = program // (GROUP * n_across) * GROUP
    n_together = tl.minimum(n_down - first, GROUP)
    within = program % (GROUP * n_across)
    rows = (first + within % n_together) * BLOCK_N + tl.arange(0, BLOCK_N)
    first_column = (within // n_together) * BLOCK_T
    columns = first_column + tl.arange(0, BLOCK_T)
    is_row, is_column = rows < n, columns < n_columns
    inputs = tl.arange(0, BLOCK_K)
    x_at = x + rows.to(tl.int64)[:, None] * x_stride + inputs[None, :]
    w_at = weights + inputs.to(tl.int64)[:, None] * weights_stride + columns[None, :]
    p = tl.zeros([BLOCK_N, BLOCK_T], dtype=tl.float32)
    for start in range(0, d_model, BLOCK_K):
        is_input = inputs < d_model - start
        a = tl.load(x_at, mask=is_row[:, None] & is_input[None, :], other=0.0)
        b = tl.load(w_at, mask=is_input[:, None] & is_column[None, :], other=0.0)
        p = tl.dot(a, b, p, input_precision=PRECISION)
        x_at += BLOCK_K
        w_at += BLOCK_K * weights_stride
    # A quarter at a time, so that few atomic additions wait at once: that halves the registers.
    left, right = _halves(p)
    quarters = _halves(left) + _halves(right)
    for place in tl.static_range(4):
        _store(
            quarters[place], rows, first_column + place * (BLOCK_T // 4),
            scale, shift, gate, floor, limits, n_kept, places, values,
            n, n_latents, capacity, IS_GATED, HAS_LIMITS, IS_DENSE,
        )  # fmt: skip


def encode_dense(prepared: torch.Tensor, encoder: Encoder, latents: slice) -> torch.Tensor:
    """Pre-activations, float32 [n, T]: to the last bit those that `launch` compares."""
    shift = encoder.b_enc[latents].float()
    values = torch.empty(len(prepared), len(shift), device=prepared.device)
    if values.numel():
        _launch(prepared, encoder.W_enc[:, latents], Epilogue(shift, shift), values)
    return values


def launch(prepared: torch.Tensor, weights: torch.Tensor, epilogue: Epilogue, kept: Kept) -> None:
    """A `morfi.kernels.compaction.Launch`."""
    _launch(prepared, weights, epilogue, kept.values, kept)


def _launch(
    prepared: torch.Tensor,
    weights: torch.Tensor,
    epilogue: Epilogue,
    values: torch.Tensor,
    kept: Kept | None = None,
) -> None:
    """All pre-activations to `values` [n, T], or those that are kept to `kept`."""
    n, n_latents = len(prepared), weights.shape[1]
    prepared, weights = in_sixteens(prepared), in_sixteens(weights, -weights.shape[0] % 16)
    block = block_of(prepared.dtype)
    n_programs = triton.cdiv(n, block["BLOCK_N"]) * triton.cdiv(n_latents, block["BLOCK_T"])
    encode_kernel[(n_programs,)](
        prepared,
        weights,
        n_kept=values if kept is None else kept.n_kept,  # a pointer that is not read may be any
        places=values if kept is None else kept.places,
        values=values,
        n=n,
        n_latents=n_latents,
        capacity=len(values),
        d_model=prepared.shape[1],
        n_columns=weights.shape[1],
        x_stride=prepared.stride(0),
        weights_stride=weights.stride(0),
        IS_DENSE=kept is None,
        **epilogue.pointers,
        **epilogue.flags,
        **block,
    )


def block_of(dtype: torch.dtype) -> dict[str, int | str]:
    """The kernel's constants and launch options for inputs of `dtype`.

    float32 is multiplied as three TF32 products, whose error of some 2^-21 of |x| |w| is that of adding up in
    float32, never as one.
    """
    is_half = dtype in (torch.bfloat16, torch.float16)
    return {
        "PRECISION": "tf32" if is_half else "tf32x3",  # of no effect on halves
        "GROUP": 8,
        **(_HALVES if is_half else _FLOATS),
    }


def in_sixteens(matrix: torch.Tensor, n_rows: int = 0) -> torch.Tensor:
    """`matrix` [n, m] if its rows can be loaded by sixteens, else a copy filled up with zeros.

    The copy has the next multiple of 16 columns, and both have `n_rows` more rows of zeros.
    """
    n_columns = -matrix.shape[1] % 16
    is_wide = matrix.stride(1) == 1 and matrix.stride(0) % 16 == 0 and matrix.data_ptr() % 16 == 0
    if is_wide and not n_columns and not n_rows:
        return matrix
    return torch.nn.functional.pad(matrix, (0, n_columns, 0, n_rows)).contiguous()
