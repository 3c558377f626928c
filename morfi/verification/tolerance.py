"""What an engine is compared with, and how far it may be from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.engine.steering import Steering
from morfi.verification.reference import Reference, Streams, load_reference

if TYPE_CHECKING:
    import torch

    from morfi.engine.directions import Direction

# Of a stream's length: sums of some thousand float32 products in another order differ by 1e-6 to 1e-5 of it.
FLOAT32 = 1e-4
FLOAT32_GAP = 1e-3
ROOM = 4.0  # both sides round by themselves
# The unit roundoff: a number that is stored once is this much off.
ROUNDOFF = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
SHARES = {"float32": 0.001, "bfloat16": 0.02, "float16": 0.02}
N_LIKELIEST = 5  # tokens whose logits decide what is said next


@dataclass(frozen=True, eq=False, slots=True)
class Expected:
    """The streams that a request must have, and how far from them counts as equal.

    `allowed`: by layer, the length of the difference over the length of a row, its root mean square over the
    rows. `gap`: how far below the likeliest token another one may be, in standard deviations of the logits.
    """

    streams: Streams
    allowed: tuple[float, ...]
    gap: float


@dataclass(frozen=True, eq=False, slots=True)
class Standard:
    """A model in transformers: `exact` in float32, and `own` in the engine's dtype where that is another."""

    exact: Reference
    own: Reference | None
    dtype: str

    @property
    def says(self) -> str:
        """The tolerance in words."""
        if self.own is None:
            return f"float32: {FLOAT32:g} of a stream's length, {FLOAT32_GAP:g} deviations of the logits"
        return (
            f"{self.dtype}: for each request, {ROOM:g} times as far from transformers in float32 as "
            f"transformers in {self.dtype} is"
        )

    @property
    def share(self) -> float:
        """How far the share that was made of a change may be from 1."""
        return SHARES[self.dtype]

    def run(
        self,
        token_ids: Sequence[int],
        n_prompt: int | None = None,
        steering: Sequence[Steering] = (),
        directions: Mapping[str, Direction] | None = None,
    ) -> Expected:
        """The streams of `token_ids`; the arguments are those of `Reference.run`."""
        streams = self.exact.run(token_ids, n_prompt, steering, directions)
        if self.own is None:
            return Expected(streams, (FLOAT32,) * len(self.exact.layers), FLOAT32_GAP)
        rounded = self.own.run(token_ids, n_prompt, steering, directions)
        least = ROUNDOFF[self.dtype]
        off = [
            max(least, float(root_mean_square(distances(a, b))))
            for a, b in zip(rounded.after, streams.after, strict=True)
        ]
        gap = max(least, _moved(rounded.logits, streams.logits))
        return Expected(streams, tuple(ROOM * one for one in off), ROOM * gap)


def load_standard(model_dir: Path, dtype: str, device: str = "cpu") -> Standard:
    """The model in `model_dir`, for an engine that serves it in `dtype`."""
    own = None if dtype == "float32" else load_reference(model_dir, dtype, device)
    return Standard(load_reference(model_dir, "float32", device), own, dtype)


def distances(values: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """For each row, the length of the difference over the length of what was expected; NaN is infinite."""
    found: torch.Tensor = (values - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-30)
    return found.nan_to_num(nan=float("inf"), posinf=float("inf"))


def root_mean_square(values: torch.Tensor) -> torch.Tensor:
    """The root of the mean of the squares."""
    return values.square().mean().sqrt()


def _moved(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """How far the likeliest tokens have moved against each other, in deviations: the worst of all rows."""
    places = expected.topk(min(N_LIKELIEST, expected.shape[1]), dim=1).indices
    found, wanted = logits.gather(1, places), expected.gather(1, places)
    moved = (found - found[:, :1]) - (wanted - wanted[:, :1])
    return float((moved.abs().max(1).values / expected.std(1)).max())
