"""The steering and capture of a decoder layer on a GPU: one Triton kernel, inside CUDA graphs.

All it reads lies in tensors with fixed addresses, which `morfi.kernels.expand` fills before each forward
pass: a graph that was captured once then does what the tensors say. A layer with nothing to do is left after
loads that do not wait for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from morfi.engine.operations import ABLATE, ADD, CLAMP, CLAMP_FIRING, CLAMP_INTERVAL, OPERATIONS, PROJECT

# The square of the largest norm of a steered residual stream: the norms of a model sum squares in float32.
MOST_SQUARE = 1e36
UNFIT = 1 << 8  # in `changed`: the stream would not have fitted, and is NaN instead
_ADD, _ABLATE, _PROJECT = (tl.constexpr(one.code) for one in (ADD, ABLATE, PROJECT))
_CLAMP_FIRING, _CLAMP_INTERVAL = tl.constexpr(CLAMP_FIRING.code), tl.constexpr(CLAMP_INTERVAL.code)
_MOST_SQUARE, _UNFIT = tl.constexpr(MOST_SQUARE), tl.constexpr(UNFIT)


class Numbers(NamedTuple):
    """The columns of `Directions.numbers`, for a direction d."""

    bias: Any
    threshold: Any
    inverse_square: Any  # 1 / |d|^2
    along: Any  # what a strength of 1 multiplies d with when it is added
    is_rescaled: Any  # 1 where norms are rescaled, else 0


_BIAS, _THRESHOLD, _INVERSE_SQUARE, _ALONG, _IS_RESCALED = map(tl.constexpr, range(len(Numbers._fields)))


@dataclass(frozen=True, slots=True)
class Directions:
    """Directions that layers steer along, a row each."""

    vectors: torch.Tensor  # float32 [n_slots, d_model]
    encoders: torch.Tensor  # float32 [n_slots, d_model], 0 for a direction that is no latent
    numbers: torch.Tensor  # float32 [n_slots, len(Numbers._fields)]


@dataclass(slots=True)
class Tables:
    """The work of one forward pass of at most T tokens: E entries and C captured layers for each.

    All addresses are fixed but that of `captured`, which lies in `captured_at`.
    """

    now: torch.Tensor  # int32 [2]: the number of the pass, 0 for one with nothing to do, and its tokens
    # int32 [n_layers, 2]: the last pass in which a layer has something to do, -1 for none, and its number, so
    # that its line says all to the kernel: graphs that differ by a number would be compiled one by one.
    active: torch.Tensor
    marks: torch.Tensor  # int32 [n_layers + T]: `ran` and `changed`, to be copied as one
    ran: torch.Tensor  # int32 [n_layers]: the last pass in which a layer did what it had to do
    layers: torch.Tensor  # int32 [T, E]: the layer of an entry, -1 for none
    slots: torch.Tensor  # int32 [T, E]: its direction
    operations: torch.Tensor  # int32 [T, E]: the codes of `morfi.engine.operations`
    strengths: torch.Tensor  # float32 [T, E]
    lows: torch.Tensor  # float32 [T, E]: of intervals, whose upper bounds are the strengths
    users: torch.Tensor  # int32 [T, E]: bits of the request's steerings that it carries out
    changed: torch.Tensor  # int32 [T]: bits of those that changed the token in the pass, and UNFIT
    capture_layers: torch.Tensor  # int32 [T, C]: the layers after which a token is captured, -1 for none
    capture_before: torch.Tensor  # int32 [T]: 1 where the value from before the steering is captured
    capture_rows: torch.Tensor  # int32 [T]: the row of `captured` of a token's first layer; others follow
    captured_at: torch.Tensor  # int64 [1]: where `captured` begins
    captured: torch.Tensor  # float32 [n, d_model], of this pass


def make_tables(
    n_layers: int,
    n_tokens: int,
    n_entries: int,
    n_captured: int,
    device: torch.device | str = "cpu",
) -> Tables:
    """Tables with nothing to do: T, E and C as given."""

    def full(*shape: int, value: int = -1) -> torch.Tensor:
        return torch.full(shape, value, dtype=torch.int32, device=device)

    marks = full(n_layers + n_tokens, value=0)
    return Tables(
        now=full(2, value=0),
        active=torch.stack([full(n_layers), torch.arange(n_layers, dtype=torch.int32, device=device)], 1),
        marks=marks,
        ran=marks[:n_layers],
        layers=full(n_tokens, n_entries),
        slots=full(n_tokens, n_entries, value=0),
        operations=full(n_tokens, n_entries, value=0),
        strengths=torch.zeros(n_tokens, n_entries, device=device),
        lows=torch.zeros(n_tokens, n_entries, device=device),
        users=full(n_tokens, n_entries, value=0),
        changed=marks[n_layers:],
        capture_layers=full(n_tokens, n_captured),
        capture_before=full(n_tokens, value=0),
        capture_rows=full(n_tokens),
        captured_at=torch.zeros(1, dtype=torch.int64, device=device),
        captured=torch.empty(0, device=device),
    )


@triton.jit
def _factor(x, d, operation, strengths, lows, numbers, encoder, columns, inside, D: tl.constexpr):
    """The factor of d [BLOCK] in what x [BLOCK] takes; see `residual_reference`."""
    strength = tl.load(strengths)
    if operation == _ADD:
        factor = strength * tl.load(numbers + _ALONG)
    elif operation == _PROJECT:
        factor = -tl.sum(x * d) * tl.load(numbers + _INVERSE_SQUARE)
    else:
        w = tl.load(encoder + columns, mask=inside, other=0.0)
        scale = tl.sqrt(tl.sum(x * x) / D)
        unit = tl.maximum(tl.where(tl.load(numbers + _IS_RESCALED) != 0.0, scale, 1.0), 1e-20)
        p = tl.sum(x * w) / unit + tl.load(numbers + _BIAS)
        f = tl.where(p > tl.load(numbers + _THRESHOLD), p, 0.0)
        target = tl.where(operation == _ABLATE, 0.0, strength)
        target = tl.where((operation == _CLAMP_FIRING) & (f == 0.0), f, target)
        within = tl.minimum(tl.maximum(f, tl.load(lows)), strength)
        target = tl.where(operation == _CLAMP_INTERVAL, within, target)
        factor = (target - f) * unit
    return factor


@triton.jit
def _captured(captured_at):
    """Where the rows that the pass captures begin."""
    return tl.multiple_of(tl.load(captured_at).to(tl.pointer_type(tl.float32)), 16)


@triton.jit
def residual_kernel(
    hidden,
    residual,
    vectors,
    encoders,
    numbers,
    now,
    line,
    ran,
    layers,
    slots,
    operations,
    strengths,
    lows,
    users,
    changed,
    capture_layers,
    capture_before,
    capture_rows,
    captured_at,
    hidden_stride,
    residual_stride,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    N_ENTRIES: tl.constexpr,
    N_CAPTURED: tl.constexpr,
    N_NUMBERS: tl.constexpr,
):
    """One program a token: hidden + residual, or hidden, is its residual stream; hidden takes the change."""
    token, number = tl.program_id(0).to(tl.int64), tl.load(now)
    # Tokens behind the last one pad the batch for a graph.
    if (tl.load(line) == number) & (token < tl.load(now + 1)):
        layer = tl.load(line + 1)
        tl.store(ran + layer, number, mask=token == 0)
        columns, inside = tl.arange(0, BLOCK), tl.arange(0, BLOCK) < D
        h = tl.load(hidden + token * hidden_stride + columns, mask=inside, other=0.0).to(tl.float32)
        two = inside & HAS_RESIDUAL
        r = tl.load(residual + token * residual_stride + columns, mask=two, other=0.0).to(tl.float32)
        x = h + r
        change = tl.zeros([BLOCK], dtype=tl.float32)
        is_steered, done = 0, 0
        for entry in range(N_ENTRIES):
            place = token * N_ENTRIES + entry
            if tl.load(layers + place) == layer:
                is_steered = 1
                slot, operation = tl.load(slots + place).to(tl.int64), tl.load(operations + place)
                strength, low = strengths + place, lows + place
                row, encoder = numbers + slot * N_NUMBERS, encoders + slot * D
                d = tl.load(vectors + slot * D + columns, mask=inside, other=0.0)
                factor = _factor(x, d, operation, strength, low, row, encoder, columns, inside, D)
                change += factor * d
                done |= tl.where(factor != 0.0, tl.load(users + place), 0)
        new = h
        if is_steered != 0:
            # Where nothing is added a number stays as it is, a zero with its sign.
            new = tl.where(change != 0.0, (h + change).to(hidden.dtype.element_ty).to(tl.float32), h)
            stream = (new + r).to(hidden.dtype.element_ty).to(tl.float32)
            fits = tl.sum(stream * stream) <= _MOST_SQUARE  # false for NaN
            new = tl.where(fits, new, float("nan"))
            tl.store(hidden + token * hidden_stride + columns, new.to(hidden.dtype.element_ty), mask=inside)
            is_moved = tl.max(tl.where(inside & (new != h), 1, 0)) != 0
            done = tl.where(is_moved, done, 0) | tl.where(fits, 0, _UNFIT)
            tl.store(changed + token, tl.load(changed + token) | done)
        for place in range(N_CAPTURED):
            if tl.load(capture_layers + token * N_CAPTURED + place) == layer:
                # What the next layer reads: the sum after rounding to the model's dtype.
                kept = tl.where(tl.load(capture_before + token) != 0, x, new + r)
                row = tl.load(capture_rows + token).to(tl.int64) + place
                tl.store(_captured(captured_at) + row * D + columns, kept, mask=inside)


def residual_(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    line: torch.Tensor,
    tables: Tables,
    directions: Directions,
) -> None:
    """Steers `hidden` [n_tokens, d_model] in place and captures, as `tables` say for a layer.

    `line` is that of the layer in `tables.active`.

    The residual stream is hidden + residual, or hidden where there is no residual. A steered token whose
    stream `hidden` cannot hold, or whose norm float32 cannot square, is made NaN and marked in `changed`.
    """
    n_tokens, d_model = hidden.shape
    assert hidden.stride(1) == 1
    assert residual is None or residual.stride(1) == 1
    residual_kernel[(n_tokens,)](
        hidden,
        hidden if residual is None else residual,
        directions.vectors,
        directions.encoders,
        directions.numbers,
        tables.now,
        line,
        tables.ran,
        tables.layers,
        tables.slots,
        tables.operations,
        tables.strengths,
        tables.lows,
        tables.users,
        tables.changed,
        tables.capture_layers,
        tables.capture_before,
        tables.capture_rows,
        tables.captured_at,
        hidden.stride(0),
        0 if residual is None else residual.stride(0),
        D=d_model,
        BLOCK=triton.next_power_of_2(d_model),
        HAS_RESIDUAL=residual is not None,
        N_ENTRIES=tables.layers.shape[1],
        N_CAPTURED=tables.capture_layers.shape[1],
        N_NUMBERS=len(Numbers._fields),
        num_warps=4 if d_model <= 2048 else 8,
    )


def factors(
    x: torch.Tensor,
    d: torch.Tensor,
    w: torch.Tensor,
    numbers: Numbers,
    operations: torch.Tensor,
    strengths: torch.Tensor,
    lows: torch.Tensor,
) -> torch.Tensor:
    """The factors of directions d in what residual streams x take, float32 [n].

    `x`, `d` and the encoders `w` are float32 [n, d_model], `operations` are codes, int64 [n], and the rest is
    float32 [n].
    """
    # Units of the SAE to units of the stream: |x| / sqrt(d_model) where norms are rescaled, else 1.
    unit = torch.where(numbers.is_rescaled.bool(), x.norm(dim=1) / x.shape[1] ** 0.5, 1.0).clamp_min(1e-20)
    p = (x * w).sum(1) / unit + numbers.bias
    f = torch.where(p > numbers.threshold, p, 0.0)
    choices = {
        ADD: strengths * numbers.along,
        ABLATE: -f * unit,
        CLAMP: (strengths - f) * unit,
        CLAMP_FIRING: torch.where(f > 0, (strengths - f) * unit, 0.0),
        CLAMP_INTERVAL: (f.clamp(lows, strengths) - f) * unit,
        PROJECT: -(x * d).sum(1) * numbers.inverse_square,
    }
    stacked = torch.stack([choices[one] for one in OPERATIONS.values()])
    return stacked.gather(0, operations[None])[0]


def residual_reference(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    line: torch.Tensor,
    tables: Tables,
    directions: Directions,
) -> None:
    """The reference of `residual_`, one token and one entry at a time."""
    by_code = list(OPERATIONS.values())
    number, n_tokens = tables.now.tolist()
    last, layer = line.tolist()
    if last != number:
        return
    tables.ran[layer] = number
    rest = torch.zeros_like(hidden) if residual is None else residual
    for token in range(n_tokens):
        x = hidden[token].float() + rest[token].float()
        change = torch.zeros_like(x)
        is_steered, done = False, 0
        for entry in range(tables.layers.shape[1]):
            if tables.layers[token, entry] != layer:
                continue
            is_steered = True
            slot = int(tables.slots[token, entry])
            numbers = Numbers(*directions.numbers[slot])
            operation, strength = by_code[tables.operations[token, entry]], tables.strengths[token, entry]
            low = tables.lows[token, entry]
            d, w = directions.vectors[slot], directions.encoders[slot]
            unit = (x.square().mean().sqrt() if numbers.is_rescaled else torch.ones(())).clamp_min(1e-20)
            p = (x * w).sum() / unit + numbers.bias
            f = p if p > numbers.threshold else torch.zeros(())
            factor = {
                ADD: strength * numbers.along,
                ABLATE: -f * unit,
                CLAMP: (strength - f) * unit,
                CLAMP_FIRING: (strength - f) * unit if f > 0 else torch.zeros(()),
                CLAMP_INTERVAL: (torch.minimum(torch.maximum(f, low), strength) - f) * unit,
                PROJECT: -(x * d).sum() * numbers.inverse_square,
            }[operation]
            change += factor * d
            done |= int(tables.users[token, entry]) if factor != 0 else 0
        if is_steered != 0:
            new = (hidden[token].float() + change).to(hidden.dtype).where(change != 0, hidden[token])
            fits = bool((new + rest[token]).float().square().sum() <= MOST_SQUARE)
            if bool((new == hidden[token]).all()):
                done = 0
            hidden[token] = new if fits else float("nan")
            tables.changed[token] |= done if fits else done | UNFIT
        after = hidden[token].float() + rest[token].float()
        for place in range(tables.capture_layers.shape[1]):
            if tables.capture_layers[token, place] == layer:
                row = tables.capture_rows[token] + place
                tables.captured[row] = x if tables.capture_before[token] else after
