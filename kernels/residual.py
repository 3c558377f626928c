"""The steering and capture of a decoder layer on a GPU: one Triton kernel, inside CUDA graphs.

All it reads lies in tensors with fixed addresses, which the host fills before each forward pass: a graph that
was captured once then does what the tensors say. A layer with nothing to do is left after one load.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

ADD, ABLATE, CLAMP, PROJECT = range(4)


@dataclass(frozen=True, slots=True)
class Tables:
    """What one forward pass does, of at most T tokens: E entries and C captured layers for each."""

    active: torch.Tensor  # int32 [n_layers]: the number of the pass, 0 where a layer has nothing to do
    ran: torch.Tensor  # int32 [n_layers]: the last pass in which a layer did what it had to do
    layers: torch.Tensor  # int32 [T, E]: the layer of an entry, -1 for none
    slots: torch.Tensor  # int32 [T, E]: its direction
    operations: torch.Tensor  # int32 [T, E]
    strengths: torch.Tensor  # float32 [T, E]
    capture_layers: torch.Tensor  # int32 [T, C]: the layers after which a token is captured, -1 for none
    capture_before: torch.Tensor  # int32 [T]: 1 where the value from before the steering is captured
    captured: torch.Tensor  # float32 [C, T, d_model]


def make_tables(
    n_layers: int,
    n_tokens: int,
    n_entries: int,
    n_captured: int,
    d_model: int,
    device: torch.device | str = "cpu",
) -> Tables:
    """Tables with nothing to do: T, E and C as given."""

    def full(*shape: int, value: int = -1) -> torch.Tensor:
        return torch.full(shape, value, dtype=torch.int32, device=device)

    return Tables(
        active=full(n_layers, value=0),
        ran=full(n_layers, value=0),
        layers=full(n_tokens, n_entries),
        slots=full(n_tokens, n_entries, value=0),
        operations=full(n_tokens, n_entries, value=0),
        strengths=torch.zeros(n_tokens, n_entries, device=device),
        capture_layers=full(n_tokens, n_captured),
        capture_before=full(n_tokens, value=0),
        captured=torch.zeros(n_captured, n_tokens, d_model, device=device),
    )


@triton.jit
def residual_kernel(
    hidden,
    residual,
    vectors,
    encoders,
    numbers,
    active,
    ran,
    layers,
    slots,
    operations,
    strengths,
    capture_layers,
    capture_before,
    captured,
    layer,
    hidden_stride,
    residual_stride,
    n_rows,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    N_ENTRIES: tl.constexpr,
    N_CAPTURED: tl.constexpr,
    N_NUMBERS: tl.constexpr,
):
    """One program a token: hidden + residual is its residual stream, hidden takes the change."""
    number = tl.load(active + layer)
    if number != 0:
        token = tl.program_id(0).to(tl.int64)
        if token == 0:
            tl.store(ran + layer, number)
        columns = tl.arange(0, BLOCK)
        inside = columns < D
        h = tl.load(hidden + token * hidden_stride + columns, mask=inside, other=0.0).to(tl.float32)
        r = tl.load(residual + token * residual_stride + columns, mask=inside, other=0.0).to(tl.float32)
        x = h + r
        change = tl.zeros([BLOCK], dtype=tl.float32)
        is_steered = 0
        for entry in range(N_ENTRIES):
            place = token * N_ENTRIES + entry
            if tl.load(layers + place) == layer:
                is_steered = 1
                slot = tl.load(slots + place).to(tl.int64)
                operation = tl.load(operations + place)
                strength = tl.load(strengths + place)
                row = numbers + slot * N_NUMBERS
                d = tl.load(vectors + slot * D + columns, mask=inside, other=0.0)
                if operation == 0:
                    factor = strength * tl.load(row + 3)
                elif operation == 3:
                    factor = -tl.sum(x * d) * tl.load(row + 2)
                else:
                    w = tl.load(encoders + slot * D + columns, mask=inside, other=0.0)
                    scale = tl.sqrt(tl.sum(x * x) / D)
                    unit = tl.maximum(tl.where(tl.load(row + 4) != 0.0, scale, 1.0), 1e-20)
                    p = tl.sum(x * w) / unit + tl.load(row)
                    f = tl.where(p > tl.load(row + 1), p, 0.0)
                    target = tl.where(operation == 2, strength, 0.0)
                    factor = (target - f) * unit
                change += factor * d
        if is_steered != 0:
            tl.store(
                hidden + token * hidden_stride + columns,
                (h + change).to(hidden.dtype.element_ty),
                mask=inside,
            )
        for place in range(N_CAPTURED):
            if tl.load(capture_layers + token * N_CAPTURED + place) == layer:
                # What the next layer reads: the sum after rounding to the model's dtype.
                after = (h + change).to(hidden.dtype.element_ty).to(tl.float32) + r
                kept = tl.where(tl.load(capture_before + token) != 0, x, after)
                tl.store(captured + (place * n_rows + token) * D + columns, kept, mask=inside)


def residual_(
    hidden: torch.Tensor,
    residual: torch.Tensor,
    layer: int,
    tables: Tables,
    bank: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Steers `hidden` [n_tokens, d_model] in place and captures, as `tables` say for `layer`.

    `bank` holds vectors and encoders, float32 [n_slots, d_model], and numbers, float32 [n_slots, 5]: bias,
    threshold, 1 / |d|^2, what "add" multiplies d with, and whether norms are rescaled.
    """
    vectors, encoders, numbers = bank
    n_tokens, d_model = hidden.shape
    residual_kernel[(n_tokens,)](
        hidden,
        residual,
        vectors,
        encoders,
        numbers,
        tables.active,
        tables.ran,
        tables.layers,
        tables.slots,
        tables.operations,
        tables.strengths,
        tables.capture_layers,
        tables.capture_before,
        tables.captured,
        layer,
        hidden.stride(0),
        residual.stride(0),
        tables.captured.shape[1],
        D=d_model,
        BLOCK=triton.next_power_of_2(d_model),
        N_ENTRIES=tables.layers.shape[1],
        N_CAPTURED=tables.captured.shape[0],
        N_NUMBERS=numbers.shape[1],
        num_warps=4 if d_model <= 2048 else 8,
    )


def residual_reference(
    hidden: torch.Tensor,
    residual: torch.Tensor,
    layer: int,
    tables: Tables,
    bank: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """What `residual_` does, a token and an entry at a time."""
    vectors, encoders, numbers = bank
    if not tables.active[layer]:
        return
    tables.ran[layer] = tables.active[layer]
    for token in range(len(hidden)):
        x = hidden[token].float() + residual[token].float()
        change = torch.zeros_like(x)
        is_steered = False
        for entry in range(tables.layers.shape[1]):
            if tables.layers[token, entry] != layer:
                continue
            is_steered = True
            slot = int(tables.slots[token, entry])
            bias, threshold, inverse_square, along, rescaled = numbers[slot]
            operation, strength = int(tables.operations[token, entry]), tables.strengths[token, entry]
            d, w = vectors[slot], encoders[slot]
            unit = (x.square().mean().sqrt() if rescaled else torch.ones(())).clamp_min(1e-20)
            p = (x * w).sum() / unit + bias
            f = p if p > threshold else torch.zeros(())
            change += {
                ADD: strength * along,
                ABLATE: -f * unit,
                CLAMP: (strength - f) * unit,
                PROJECT: -(x * d).sum() * inverse_square,
            }[operation] * d
        if is_steered:
            hidden[token] = (hidden[token].float() + change).to(hidden.dtype)
        after = hidden[token].float() + residual[token].float()
        for place in range(tables.capture_layers.shape[1]):
            if tables.capture_layers[token, place] == layer:
                tables.captured[place, token] = x if tables.capture_before[token] else after
