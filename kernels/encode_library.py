"""Encoding on a GPU by cuBLAS: products in a workspace, and one kernel that activates and compacts them.

Products are float32 whatever was multiplied: rounded to bfloat16 they would cross thresholds that they do
not cross in the fused kernel.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from morfi.kernels.compaction import Epilogue, Kept, activated
from morfi.kernels.encoder import Encoder

WORKSPACE = 2**25  # products at a time, 128 MiB: 2,048 questions of 16,384 latents
ROWS, COLUMNS = 8, 256  # of a program's block: registers for 4 or more at once


@triton.jit(do_not_specialize=["first", "n_rows", "n", "n_latents", "capacity"])
def compact_kernel(
    products,
    scale,
    shift,
    gate,
    floor,
    limits,
    n_kept,
    places,
    values,
    first,
    n_rows,
    n,
    n_latents,
    capacity,
    stride,
    IS_GATED: tl.constexpr,
    HAS_LIMITS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program a block [ROWS, COLUMNS] of products [n_rows, n_latents], of questions from `first` on."""
    within = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    is_row, is_column = within < n_rows, columns < n_latents
    rows = first + within
    at = products + within.to(tl.int64)[:, None] * stride + columns[None, :]
    p = tl.load(at, mask=is_row[:, None] & is_column[None, :], other=0.0)
    z, keep = activated(
        p, rows, columns, is_row, is_column, scale, shift, gate, floor, limits, IS_GATED, HAS_LIMITS
    )  # fmt: skip
    # Room for the whole block at once; its rows lie one behind the other.
    in_row = tl.sum(keep.to(tl.int32), 1)
    begin = tl.atomic_add(n_kept, tl.sum(in_row, 0), sem="relaxed")
    before = begin + tl.cumsum(in_row, 0) - in_row
    to = before[:, None] + tl.cumsum(keep.to(tl.int32), 1) - 1
    keep &= to < capacity
    tl.store(places + to, columns[None, :] * n + rows[:, None], mask=keep)
    tl.store(values + to, z, mask=keep)


def encode_dense(prepared: torch.Tensor, encoder: Encoder, latents: slice) -> torch.Tensor:
    """Pre-activations, float32 [n, T]."""
    shift = encoder.b_enc[latents].float()
    values = torch.empty(len(prepared), len(shift), device=prepared.device)
    return _product(prepared, encoder.W_enc[:, latents], values).add_(shift)


def launch(prepared: torch.Tensor, weights: torch.Tensor, epilogue: Epilogue, kept: Kept) -> None:
    """A `morfi.kernels.compaction.Launch`."""
    n, n_latents = len(prepared), weights.shape[1]
    stride = n_latents + -n_latents % 16  # so that rows can be loaded by sixteens
    n_rows = min(n, max(1, WORKSPACE // stride))
    workspace = torch.empty(n_rows, stride, device=prepared.device)[:, :n_latents]
    for first in range(0, n, n_rows):
        rows = prepared[first : first + n_rows]
        products = _product(rows, weights, workspace[: len(rows)])
        compact_kernel[(triton.cdiv(len(rows), ROWS), triton.cdiv(n_latents, COLUMNS))](
            products,
            n_kept=kept.n_kept,
            places=kept.places,
            values=kept.values,
            first=first,
            n_rows=len(rows),
            n=n,
            n_latents=n_latents,
            capacity=len(kept.values),
            stride=stride,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
            **epilogue.pointers,
            **epilogue.flags,
        )


def _product(x: torch.Tensor, weights: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """x @ weights in `out`, float32."""
    if x.device.type == "cpu" or x.dtype == torch.float32:
        return torch.mm(x.float(), weights.float(), out=out)
    return torch.mm(x, weights, out_dtype=torch.float32, out=out)
