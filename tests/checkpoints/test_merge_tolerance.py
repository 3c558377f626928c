"""What another order of sums may change in a merge is allowed, and what shortened products change is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from morfi.checkpoints.adapters import Adapter, Lora
from morfi.checkpoints.lora import Edit, Merge, merged
from morfi.checkpoints.merge_tolerance import allowed_difference
from morfi.checkpoints.weights import Weights

RANK = 32


def merge_of(dtype: str, draw: torch.Generator) -> tuple[Merge, torch.Tensor, torch.Tensor]:
    a, b = torch.randn(RANK, 96, generator=draw), 0.1 * torch.randn(64, RANK, generator=draw)
    adapter = Adapter(Path("a"), {}, Weights({}, {"a": a, "b": b}))
    lora = Lora({"a": "a", "b": "b"}, scaling=2.0)
    return Merge(adapter, dtype, {"w": Edit(lora=lora)}, None, "head", False, False, None), a, b


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_sums_in_another_order_are_within_what_is_allowed_and_tf32_is_not(dtype: str) -> None:
    draw = torch.Generator().manual_seed(0)
    merge, a, b = merge_of(dtype, draw)
    served = getattr(torch, dtype)
    base = 0.02 * torch.randn(64, 96, generator=draw).to(served)
    expected = merged("w", base, merge).to(served)
    allowed = allowed_difference("w", expected, merge)

    def apart(left: torch.Tensor, right: torch.Tensor, order: list[int]) -> torch.Tensor:
        product = torch.zeros(64, 96)
        for k in order:
            product += left[:, k : k + 1] * right[k : k + 1]
        found = (product * 2.0 + base.float()).to(served)
        return (found.float() - expected.float()).abs()

    order = torch.randperm(RANK, generator=draw).tolist()
    assert (apart(b, a, order) <= allowed).all()
    # TF32 keeps 10 bits of a product's factors; a shorter dtype than float32 may hide that.
    short_a, short_b = (part.view(torch.int32).bitwise_and(-(1 << 13)).view(torch.float32) for part in (a, b))
    if dtype == "float32":
        assert (apart(short_b, short_a, order) > allowed).float().mean() > 0.5
