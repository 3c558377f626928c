"""Encoding on a GPU: a matrix product whose epilogue activates and compacts, so that only non-zeros leave.

A program computes a block of pre-activations, and stores value and place of each that it keeps where one
atomic counter says. One addition for each of the few that are kept (about 25 in a block of 128 x 128 where
50 of 32,768 latents fire) needs no prefix sum over the block, which would need more registers than there
are. Values come in any order, so they are sorted by their places afterwards: the result is the same in every
run. If more was kept than there was room for, it is done again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from morfi.kernels.encoder import Encoder, Nonzeros

DENSITY = 1 / 32  # of the activations that there is space for at first
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
    z = p
    if IS_GATED:
        z = z * tl.load(scale + columns, mask=is_column, other=0.0)[None, :]
    z += tl.load(shift + columns, mask=is_column, other=0.0)[None, :]
    inside = is_row[:, None] & is_column[None, :]
    if IS_DENSE:
        tl.store(values + rows.to(tl.int64)[:, None] * n_latents + columns[None, :], z, mask=inside)
    else:
        keep = inside & (z > tl.load(floor + columns, mask=is_column, other=0.0)[None, :])
        if IS_GATED:
            keep &= p + tl.load(gate + columns, mask=is_column, other=0.0)[None, :] > 0
        if HAS_LIMITS:
            keep &= z >= tl.load(limits + rows, mask=is_row, other=0.0)[:, None]
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


@dataclass(frozen=True, eq=False, slots=True)
class _Epilogue:
    """After the product p, float32 [T]: z = p scale + shift is kept above `floor` and `limits` [n]."""

    shift: torch.Tensor
    floor: torch.Tensor
    scale: torch.Tensor | None = None  # of "gated", with `gate`: kept only where p + gate > 0
    gate: torch.Tensor | None = None
    limits: torch.Tensor | None = None


@dataclass(frozen=True, eq=False, slots=True)
class _Kept:
    """The values that a launch keeps, in any order; `count` may be more than there was room for."""

    places: torch.Tensor  # int32 [capacity]: latent * n + question
    values: torch.Tensor  # float32 [capacity]
    n_kept: torch.Tensor  # on the host, once `copied` has happened
    copied: torch.cuda.Event | None

    def count(self) -> int:
        """Waits for this launch alone: others may have been queued behind it."""
        if self.copied is not None:
            self.copied.synchronize()
        return int(self.n_kept)

    def ordered(self, found: int, n: int, n_latents: int) -> Nonzeros:
        """The first `found`, by latent, then question: places are unique, so any sort gives the same."""
        places, order = self.places[:found].sort()
        bounds = torch.arange(n_latents + 1, dtype=torch.int32, device=places.device) * n
        starts = torch.searchsorted(places, bounds)
        return Nonzeros(starts, (places % max(1, n)).long(), self.values[:found][order])


def start_tile(
    prepared: torch.Tensor,
    encoder: Encoder,
    latents: slice,
    limits: torch.Tensor | None = None,
    density: float = DENSITY,
) -> Callable[[], Nonzeros]:
    """The result of `morfi.kernels.encode.start_tile`; `limits` must be `encode_dense`'s, bit for bit."""
    n, n_latents = len(prepared), latents.stop - latents.start
    if n * n_latents >= 2**31:
        raise ValueError(f"{n} questions x {n_latents} latents are too many at once: places are int32")
    weights, epilogue = encoder.W_enc[:, latents], _epilogue(encoder, latents, limits)
    first = _keep(prepared, weights, epilogue, max(1024, int(n * n_latents * density)))

    def end() -> Nonzeros:
        found = first.count()
        kept = first if found <= len(first.values) else _keep(prepared, weights, epilogue, found)
        return kept.ordered(found, n, n_latents)

    return end


def encode_dense(prepared: torch.Tensor, encoder: Encoder, latents: slice) -> torch.Tensor:
    """Pre-activations, float32 [n, T]: to the last bit those that `start_tile` compares with `limits`."""
    shift = encoder.b_enc[latents].float()
    values = torch.empty(len(prepared), len(shift), device=prepared.device)
    _launch(prepared, encoder.W_enc[:, latents], _Epilogue(shift, shift), values)
    return values


def _epilogue(encoder: Encoder, latents: slice, limits: torch.Tensor | None) -> _Epilogue:
    shift = encoder.b_enc[latents].float()
    if encoder.activation == "gated":
        assert encoder.r_mag is not None
        assert encoder.b_mag is not None
        scale, bias = encoder.r_mag[latents].float().exp(), encoder.b_mag[latents].float()
        return _Epilogue(bias, torch.zeros_like(bias), scale, gate=shift)
    if encoder.activation == "jumprelu":
        assert encoder.threshold is not None
        return _Epilogue(shift, encoder.threshold[latents].float().clamp_min(0))
    return _Epilogue(shift, torch.zeros_like(shift), limits=limits)


def _keep(prepared: torch.Tensor, weights: torch.Tensor, epilogue: _Epilogue, capacity: int) -> _Kept:
    device = prepared.device
    places = torch.empty(capacity, dtype=torch.int32, device=device)
    values = torch.empty(capacity, device=device)
    n_kept = torch.zeros(1, dtype=torch.int32, device=device)
    _launch(prepared, weights, epilogue, values, places, n_kept)
    on_host = n_kept.to("cpu", non_blocking=True)
    if device.type == "cpu":  # in the interpreter
        return _Kept(places, values, on_host, None)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(device))
    return _Kept(places, values, on_host, copied)


def _launch(
    prepared: torch.Tensor,
    weights: torch.Tensor,
    epilogue: _Epilogue,
    values: torch.Tensor,
    places: torch.Tensor | None = None,
    n_kept: torch.Tensor | None = None,
) -> None:
    n, n_latents = len(prepared), weights.shape[1]
    prepared, weights = in_sixteens(prepared), in_sixteens(weights, -weights.shape[0] % 16)
    block = block_of(prepared.dtype)
    n_programs = triton.cdiv(n, block["BLOCK_N"]) * triton.cdiv(n_latents, block["BLOCK_T"])
    if not n_programs:
        return
    # A pointer that is not read may be any.
    shift, limits = epilogue.shift, epilogue.limits
    encode_kernel[(n_programs,)](
        prepared,
        weights,
        shift if epilogue.scale is None else epilogue.scale,
        shift,
        shift if epilogue.gate is None else epilogue.gate,
        epilogue.floor,
        shift if limits is None else limits.contiguous(),
        values if n_kept is None else n_kept,
        values if places is None else places,
        values,
        n,
        n_latents,
        len(values),
        prepared.shape[1],
        weights.shape[1],
        prepared.stride(0),
        weights.stride(0),
        IS_GATED=epilogue.gate is not None,
        HAS_LIMITS=limits is not None,
        IS_DENSE=places is None,
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
