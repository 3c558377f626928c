"""The conditions that `find_trends` compares, and the passes over their questions, some latents at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from morfi.kernels.encode import chosen_way, row_limits, start_tile
from morfi.kernels.encoder import Encoder, Nonzeros, prepare, subtiles
from morfi.kernels.null import TrendNull
from morfi.kernels.page import PageSums
from morfi.kernels.sums import PartialSums
from morfi.latents.rows import CHUNK, Rows, chunks

_Started = tuple[
    int, int, Callable[[], Nonzeros]
]  # condition, number of the part, and what ends its encoding


_MEASURED = 64  # questions of each condition


@dataclass(frozen=True, slots=True)
class Tiling:
    """How much is done at a time."""

    latents: int
    encoded: int  # of those, at once
    resampled: int  # latents of one condition, shared by all conditions
    questions: int


# What is encoded stays in the cache until it is compacted, and what a latent's comparisons need in a core's.
ON_CPU = Tiling(latents=16384, encoded=1024, resampled=896, questions=CHUNK)
# There each step must be worth its launches.
ON_GPU = Tiling(latents=32768, encoded=32768, resampled=28672, questions=4 * CHUNK)


@dataclass(frozen=True, eq=False, slots=True)
class TrendInputs:
    """The inputs of one run."""

    activations: list[Rows]
    levels: tuple[float, ...]
    encoder: Encoder
    n_questions: int
    null: TrendNull
    device: torch.device

    @property
    def tiling(self) -> Tiling:
        """The choice that suits the device."""
        return ON_CPU if self.device.type == "cpu" else ON_GPU

    @property
    def n_resampled(self) -> int:
        """How many latents are resampled at a time: fewer of more conditions, for the same memory."""
        return max(1, self.tiling.resampled // len(self.activations))

    @property
    def chunks(self) -> list[slice]:
        """All questions, some at a time."""
        return chunks(self.n_questions, self.tiling.questions)

    def prepared(self, condition: int, rows: slice) -> torch.Tensor:
        """The rows of these questions that the encoder multiplies."""
        return prepare(self.activations[condition][rows].to(self.device), self.encoder)

    def in_one_way(self) -> TrendInputs:
        """The same with an encoder that has a way, by the density of a few questions of every condition."""
        few = slice(0, min(_MEASURED, self.n_questions))
        samples = (self.prepared(condition, few) for condition in range(len(self.activations)))
        way = chosen_way(self.encoder, samples, self.tiling.encoded)
        return replace(self, encoder=replace(self.encoder, way=way))

    def limits(self) -> list[torch.Tensor] | None:
        """The limits that `row_limits` gives for all questions of each condition."""
        if self.encoder.activation != "topk":
            return None
        found = []
        for condition in range(len(self.activations)):
            limits = (
                row_limits(self.prepared(condition, rows), self.encoder, self.tiling.encoded)
                for rows in self.chunks
            )
            found.append(torch.cat([one for one in limits if one is not None]))
        return found

    def add_to(
        self,
        sums: PartialSums,
        encoder: Encoder,
        limits: list[torch.Tensor] | None,
        counts: torch.Tensor,
        page: PageSums | None = None,
    ) -> None:
        """Adds all questions of all conditions; `counts` [n_questions, B] for the resamples."""
        parts = list(subtiles(sums.latents, self.tiling.encoded))
        for rows in self.chunks:
            found: list[list[Nonzeros]] = [[] for _ in parts]
            drawn = counts[rows] if counts.is_cuda else counts[rows].float()
            for condition, part, end in _one_ahead(self._started(rows, encoder, parts, limits)):
                nonzeros = end()
                sums.add(condition, parts[part], nonzeros, drawn)
                if page is not None:
                    found[part].append(nonzeros)
            if page is not None:
                for latents, by_condition in zip(parts, found, strict=True):
                    page.add(latents, by_condition, len(drawn))

    def _started(
        self, rows: slice, encoder: Encoder, parts: Sequence[slice], limits: list[torch.Tensor] | None
    ) -> Iterator[_Started]:
        """The encoding of every condition and part, as it is started."""
        for condition in range(len(self.activations)):
            prepared = self.prepared(condition, rows)
            limit = None if limits is None else limits[condition][rows]
            for part, latents in enumerate(parts):
                yield condition, part, start_tile(prepared, encoder, latents, limit)


def _one_ahead(items: Iterable[_Started]) -> Iterator[_Started]:
    """The same items, each once the next has been made: a GPU that started it has work while we wait."""
    last: list[_Started] = []
    for item in items:
        yield from last
        last = [item]
    yield from last
