"""How far an engine may be from the reference, by dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.verification.reference import Reference, load_reference

if TYPE_CHECKING:
    import torch

# Of a row's length. Sums of some thousand float32 products in another order differ by 1e-6 to 1e-5 of it.
FLOAT32 = 1e-4
FLOAT32_GAP = 1e-3
ROOM = 4.0  # both sides round by themselves, and the worst of many rows is compared with the worst of others
# The unit roundoff: a row that is stored once is this much off.
ROUNDOFF = {"bfloat16": 2.0**-8, "float16": 2.0**-11}


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The distance that counts as equal.

    `streams`: by layer, the length of the difference of two residual streams over the length of the
    reference's. `gap`: how far below the reference's likeliest token another one may be, in standard
    deviations of the logits there.
    """

    streams: tuple[float, ...]
    gap: float
    says: str  # where it comes from


def tolerance_of(
    reference: Reference, model_dir: Path, dtype: str, texts: Sequence[Sequence[int]], device: str = "cpu"
) -> Tolerance:
    """The tolerance for `dtype`: fixed for float32, else measured on the token ids of `texts`.

    There the reference is compared with itself in float32: an engine may be as far from it as ROOM times
    what the dtype alone does.
    """
    if dtype == "float32":
        said = f"float32: {FLOAT32:g} of a stream's length, {FLOAT32_GAP:g} deviations of the logits"
        return Tolerance((FLOAT32,) * len(reference.layers), FLOAT32_GAP, said)
    exact = load_reference(model_dir, "float32", device)
    streams = [ROUNDOFF[dtype]] * len(reference.layers)
    gap = ROUNDOFF[dtype]
    for text in texts:
        own, wanted = reference.run(text), exact.run(text)
        for layer in range(len(streams)):
            off = float(distances(own.after[layer], wanted.after[layer]).max())
            streams[layer] = max(streams[layer], off)
        spread = wanted.logits.std(1, keepdim=True)
        gap = max(gap, float(((own.logits - wanted.logits) / spread).abs().max()))
    for layer in range(1, len(streams)):  # what a layer is off is handed on
        streams[layer] = max(streams[layer], streams[layer - 1])
    return Tolerance(
        tuple(ROOM * one for one in streams),
        ROOM * gap,
        f"{dtype}: {ROOM:g} times what transformers itself is off from float32 on {len(texts)} texts, "
        f"{ROOM * streams[0]:.2g} to {ROOM * streams[-1]:.2g} of a stream's length by layer, "
        f"{ROOM * gap:.2g} deviations of the logits",
    )


def distances(values: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """For each row, the length of the difference over the length of what was expected; NaN is infinite."""
    found: torch.Tensor = (values - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-30)
    return found.nan_to_num(nan=float("inf"), posinf=float("inf"))
