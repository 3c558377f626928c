"""`encode_tile` on a GPU: a matrix product whose epilogue activates and compacts, so that only non-zeros leave.

A program computes a block of pre-activations, and stores value and place of each that it keeps where one atomic
counter says. (Counting a block's by a prefix sum and reserving room for all at once takes one atomic addition a
block instead, but more registers than there are.) Values come in any order, so they are sorted by their places
afterwards: the result is the same in every run. If more was kept than there was room for, it is done again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from morfi.kernels.encode import Encoder, Nonzeros

OPTIONS = {"num_warps": 8, "num_stages": 3}
DENSITY = 1 / 32  # of the activations that there is space for at first


@triton.jit
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
    d_model,
    capacity,
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
    """One program a block [BLOCK_N, BLOCK_T] of x [n, d_model] @ weights [d_model, n_latents].

    `values` takes all pre-activations, [n, n_latents], if IS_DENSE, else those that are kept, with
    latent * n + question in `places`.
    """
    # Blocks of GROUP rows of questions go together, so that the weights they share stay in the L2 cache.
    n_rows, n_columns = tl.cdiv(n, BLOCK_N), tl.cdiv(n_latents, BLOCK_T)
    program = tl.program_id(0)
    first = program // (GROUP * n_columns) * GROUP
    n_together = tl.minimum(n_rows - first, GROUP)
    within = program % (GROUP * n_columns)
    rows = (first + within % n_together) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = (within // n_together) * BLOCK_T + tl.arange(0, BLOCK_T)
    is_row, is_column = rows < n, columns < n_latents
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
        counter = n_kept + tl.zeros([BLOCK_N, BLOCK_T], dtype=tl.int32)
        at = tl.atomic_add(counter, 1, mask=keep)
        keep &= at < capacity
        tl.store(places + at, columns[None, :] * n + rows[:, None], mask=keep)
        tl.store(values + at, z, mask=keep)


def encode_tile(
    prepared: torch.Tensor,
    encoder: Encoder,
    latents: slice,
    limits: torch.Tensor | None = None,
    density: float = DENSITY,
) -> Nonzeros:
    """What `morfi.kernels.encode.encode_tile` gives; `limits` must come from this module's `row_limits`."""
    shift, floor = encoder.b_enc[latents].float(), None
    scale = gate = None
    if encoder.activation == "gated":
        assert encoder.r_mag is not None
        assert encoder.b_mag is not None
        scale, shift, gate = encoder.r_mag[latents].float().exp(), encoder.b_mag[latents].float(), shift
    elif encoder.activation == "jumprelu":
        assert encoder.threshold is not None
        floor = encoder.threshold[latents].float().clamp_min(0)
    n, n_latents = len(prepared), latents.stop - latents.start
    weights, capacity = encoder.W_enc[:, latents], max(1024, int(n * n_latents * density))
    if n * n_latents >= 2**31:
        raise ValueError(f"{n} questions x {n_latents} latents are too many at once")
    while True:
        n_kept = torch.zeros(1, dtype=torch.int32, device=prepared.device)
        places = torch.empty(capacity, dtype=torch.int32, device=prepared.device)
        values = torch.empty(capacity, device=prepared.device)
        epilogue = scale, shift, gate, torch.zeros_like(shift) if floor is None else floor, limits
        _launch(prepared, weights, epilogue, (n_kept, places, values))
        found = int(n_kept)
        if found <= capacity:
            break
        capacity = found
    places, order = places[:found].long().sort()
    starts = torch.searchsorted(places, torch.arange(n_latents + 1, device=places.device) * n)
    return Nonzeros(starts, places % n, values[:found][order])


def encode_dense(prepared: torch.Tensor, encoder: Encoder, latents: slice) -> torch.Tensor:
    """Pre-activations, float32 [n, T]: to the last bit those that `encode_tile` compares with `limits`."""
    shift = encoder.b_enc[latents].float()
    values = torch.empty(len(prepared), len(shift), device=prepared.device)
    _launch(prepared, encoder.W_enc[:, latents], (None, shift, None, shift, None), (None, None, values))
    return values


def _launch(
    prepared: torch.Tensor,
    weights: torch.Tensor,
    epilogue: tuple[
        torch.Tensor | None, torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None
    ],
    out: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor],
) -> None:
    scale, shift, gate, floor, limits = epilogue
    n_kept, places, values = out
    prepared, weights = _by_rows(prepared), _by_rows(weights)
    (n, d_model), n_latents = prepared.shape, weights.shape[1]
    block = block_of(prepared.dtype)
    grid = (triton.cdiv(n, block["BLOCK_N"]) * triton.cdiv(n_latents, block["BLOCK_T"]),)
    # A pointer that is not read may be any.
    encode_kernel[grid](
        prepared,
        weights,
        shift if scale is None else scale,
        shift,
        shift if gate is None else gate,
        floor,
        shift if limits is None else limits.contiguous(),
        values if n_kept is None else n_kept,
        values if places is None else places,
        values,
        n,
        n_latents,
        d_model,
        len(values),
        prepared.stride(0),
        weights.stride(0),
        IS_GATED=gate is not None,
        HAS_LIMITS=limits is not None,
        IS_DENSE=places is None,
        **block,
        **OPTIONS,
    )


def block_of(dtype: torch.dtype) -> dict[str, int | str]:
    """The kernel's block for inputs of `dtype`: float32 is multiplied as such, never as TF32."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return {
        "PRECISION": "tf32" if is_half else "ieee",  # of no effect on halves
        "BLOCK_N": 128,
        "BLOCK_T": 128,
        "BLOCK_K": 64 if is_half else 32,
        "GROUP": 8,
    }


def _by_rows(matrix: torch.Tensor) -> torch.Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
