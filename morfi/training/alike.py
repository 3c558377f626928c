"""Checkpoints that differ in name alone: their weights are the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from morfi.store.records import CheckpointRow

_MOST_NAMED = 4  # checkpoints in one line


def same_weights(rows: Iterable[CheckpointRow]) -> Iterator[str]:
    """A line for each group of checkpoints, of different trainings or epochs, with equal adapters.

    The early-stop checkpoint of a training is one of its epochs, and is not counted again.
    """
    places: dict[str, dict[tuple[float, int, int], None]] = {}
    for row in rows:
        places.setdefault(row.adapter_sha256, {})[row.level, row.seed, row.epoch] = None
    for sha256, alike in places.items():
        if len(alike) > 1:
            named = [f"level {level}, seed {seed}, epoch {epoch}" for level, seed, epoch in alike]
            more = f"; {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
            yield (
                f"{len(named)} checkpoints have the same weights (sha256 {sha256[:16]}), so nothing can tell "
                f"them apart: {'; '.join(named[:_MOST_NAMED])}{more}"
            )
