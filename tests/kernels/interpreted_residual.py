"""Run by test_residual.py, with TRITON_INTERPRET=1 or on a GPU: the residual kernel beside its reference.

The device is the first argument.
"""

from __future__ import annotations

import copy
import itertools
import json
import sys
from dataclasses import fields, replace
from typing import Any

import torch

from morfi.engine.operations import OPERATIONS
from morfi.kernels.residual import (
    UNFIT,
    Directions,
    Numbers,
    Tables,
    make_tables,
    residual_,
    residual_reference,
)

DEVICE = torch.device(sys.argv[1])
N_LAYERS, N_TOKENS, N_ENTRIES, N_SLOTS = 3, 9, 4, 6
UNWRITTEN = -12345.0  # NaN is what a stream without numbers is captured as


def draw_case(
    d_model: int, dtype: torch.dtype, seed: int
) -> tuple[torch.Tensor, torch.Tensor | None, Tables, Directions]:
    """The residual is None for the last seed."""
    draw = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=draw, dtype=torch.int32)

    hidden = torch.randn(N_TOKENS, d_model, generator=draw).to(dtype)
    residual = None if seed == 2 else torch.randn(N_TOKENS, d_model, generator=draw).to(dtype)
    vectors = torch.randn(N_SLOTS, d_model, generator=draw)
    encoders = torch.randn(N_SLOTS, d_model, generator=draw) / d_model**0.5
    square = vectors.square().sum(1)
    numbers = Numbers(
        bias=torch.randn(N_SLOTS, generator=draw),
        threshold=torch.rand(N_SLOTS, generator=draw),
        inverse_square=1 / square,
        along=torch.where(torch.arange(N_SLOTS) % 2 == 0, 1.0, square.rsqrt()),
        is_rescaled=(torch.arange(N_SLOTS) % 3 == 0).float(),
    )
    directions = Directions(vectors, encoders, torch.stack(numbers, 1).contiguous())
    tables = make_tables(N_LAYERS, N_TOKENS, N_ENTRIES, 2)
    tables.now.copy_(torch.tensor([7, N_TOKENS]))
    tables.active[:, 0] = torch.tensor([7, 6, 7])
    tables.layers.copy_(integers(-1, N_LAYERS, N_TOKENS, N_ENTRIES))
    tables.slots.copy_(integers(0, N_SLOTS, N_TOKENS, N_ENTRIES))
    tables.operations.copy_(integers(0, len(OPERATIONS), N_TOKENS, N_ENTRIES))
    tables.strengths.copy_(torch.randn(N_TOKENS, N_ENTRIES, generator=draw))
    tables.strengths[5:7] *= torch.tensor([0.0, 3e37, 1.0, 0.0])  # nothing, and more than a stream holds
    spread = torch.rand(N_TOKENS, N_ENTRIES, generator=draw)
    tables.lows.copy_(tables.strengths - spread * (tables.strengths.abs() < 1e6))
    tables.users.copy_(1 << integers(0, 8, N_TOKENS, N_ENTRIES))
    tables.capture_layers[:, 0] = torch.tensor([0, -1, 0, 1, -1, 2, -1, -1, 0])
    tables.capture_layers[:, 1] = torch.tensor([2, -1, -1, 0, -1, 1, -1, -1, 2])
    tables.capture_before.copy_(integers(0, 2, N_TOKENS))
    tables.capture_rows.copy_(2 * torch.randperm(N_TOKENS, generator=draw))
    tables.captured = torch.full((2 * N_TOKENS, d_model), UNWRITTEN)
    tables = on_device(tables)
    place_captured(tables, tables.captured)
    there = None if residual is None else residual.to(DEVICE)
    return hidden.to(DEVICE), there, tables, on_device(directions)


def on_device(of: Any) -> Any:
    return replace(of, **{field.name: getattr(of, field.name).to(DEVICE) for field in fields(of)})


def place_captured(tables: Tables, captured: torch.Tensor) -> None:
    tables.captured = captured
    tables.captured_at.fill_(captured.data_ptr())


def compare(d_model: int, dtype: torch.dtype, seed: int) -> int:
    """Steers and captures layer by layer, both ways; returns how many rows were changed."""
    hidden, residual, tables, directions = draw_case(d_model, dtype, seed)
    # The interpreter rounds to bfloat16 in a way of its own, so each layer begins with the same stream.
    exact: dict[str, Any] = (
        {} if DEVICE.type == "cpu" else {"rtol": 1e-4, "atol": 1e-4}
    )  # sums in another order
    close = exact if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    n_changed = 0
    for layer in range(N_LAYERS):
        before, expected, expected_tables = hidden.clone(), hidden.clone(), copy.deepcopy(tables)
        place_captured(expected_tables, expected_tables.captured)
        residual_(hidden, residual, tables.active[layer], tables, directions)
        residual_reference(expected, residual, expected_tables.active[layer], expected_tables, directions)
        torch.testing.assert_close(hidden, expected, equal_nan=True, **close)
        torch.testing.assert_close(tables.captured, expected_tables.captured, equal_nan=True, **close)
        unfit = UNFIT & tables.changed
        assert torch.equal(unfit, UNFIT & expected_tables.changed)
        assert torch.equal(tables.changed[unfit == 0], expected_tables.changed[unfit == 0])
        changed = ((hidden != before) & ~before.isnan()).any(1)
        assert changed.any() == (layer != 1), "layer 1 is not active"
        assert torch.equal(hidden.isnan().any(1), hidden.isnan().all(1))
        n_changed += int(changed.sum())
    wanted = (tables.capture_layers == 0) | (tables.capture_layers == 2)  # by token and place
    written = (tables.captured != UNWRITTEN).any(1).view(-1, 2)[tables.capture_rows // 2]
    assert torch.equal(written, wanted)
    assert tables.ran.tolist() == [7, 0, 7]
    assert torch.equal(hidden.isnan().any(1), (tables.changed & UNFIT) != 0)
    return n_changed


def leave(d_model: int) -> bool:
    """Whether a pass with nothing to do changes no bit."""
    hidden, residual, _, directions = draw_case(d_model, torch.float32, 0)
    idle = make_tables(N_LAYERS, N_TOKENS, N_ENTRIES, 2, DEVICE)
    before = hidden.clone()
    for layer in range(N_LAYERS):
        residual_(hidden, residual, idle.active[layer], idle, directions)
    return torch.equal(hidden, before) and not idle.ran.any()


if __name__ == "__main__":
    cases = itertools.product((64, 48, 576), (torch.float32, torch.bfloat16), range(3))
    json.dump({"changed": [compare(*case) for case in cases], "left": leave(64)}, sys.stdout)
