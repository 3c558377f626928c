"""Captured residual streams on disk: safetensors shards that workers write while the model runs.

A folder holds shards of each worker, and `requests.safetensors`, written last. The rows of layer 15 in a
shard are `15.values`, float32 [n, d_model], with `15.request`, `15.sample`, `15.position` and `15.token_id`,
int64 [n]. A row counts if its request is in `requests.safetensors` (`request`, `sample`, `n_computed`, int64)
and its position is below `n_computed`: an engine may have begun a token more than a request needed.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.checkpoints.weights import Weights, open_file, write_tensors
from morfi.errors import InputError

if TYPE_CHECKING:
    import torch

REQUESTS = "requests.safetensors"
_COLUMNS = ("request", "sample", "position", "token_id")
_N_WAITING = 2  # full shards that wait for the disk before the model waits too


@dataclass(frozen=True, eq=False, slots=True)
class ShardRows:
    """Rows of one layer: `values` float32 [n, d_model]; the others int64 [n]."""

    layer: int
    values: torch.Tensor
    request: torch.Tensor
    sample: torch.Tensor
    position: torch.Tensor
    token_id: torch.Tensor


class ShardWriter:
    """Writes shards to a folder in a thread of its own; `add` blocks while the disk is behind."""

    def __init__(self, folder: Path, prefix: str, shard_bytes: int) -> None:
        self._folder, self._prefix, self._shard_bytes = folder, prefix, shard_bytes
        self._rows: list[ShardRows] = []
        self._n_bytes = 0
        self._full: queue.Queue[list[ShardRows] | None] = queue.Queue(_N_WAITING)
        self.failure: str | None = None  # why rows were lost, if they were
        self._thread = threading.Thread(target=self._write_all, name="morfi-shards", daemon=True)
        self._thread.start()

    def add(
        self,
        layer: int,
        values: torch.Tensor,
        labels: tuple[int, int],
        positions: Sequence[int],
        token_ids: Sequence[int],
    ) -> None:
        """Adds rows of one request; `labels` are its number and the sample's."""
        import torch

        if self.failure is not None:
            return
        request, sample = (torch.full((len(values),), label) for label in labels)
        self._rows.append(
            ShardRows(layer, values, request, sample, torch.tensor(positions), torch.tensor(token_ids))
        )
        self._n_bytes += values.nbytes + len(_COLUMNS) * request.nbytes
        if self._n_bytes >= self._shard_bytes:
            self._hand_over()

    def close(self) -> None:
        """Returns when all rows are written, or `failure` says why they are not."""
        if self._rows:
            self._hand_over()
        self._full.put(None)
        self._thread.join()

    def _hand_over(self) -> None:
        self._full.put(self._rows)
        self._rows, self._n_bytes = [], 0

    def _write_all(self) -> None:
        number = 0
        while (rows := self._full.get()) is not None:
            if self.failure is not None:
                continue  # so that nobody waits for ever
            try:
                path = self._folder / f"{self._prefix}-{number:05d}.safetensors"
                write_tensors(path, _tensors(rows))
                number += 1
            except Exception as error:  # noqa: BLE001 - told to whoever asks
                self.failure = str(getattr(error, "strerror", None) or error or type(error).__name__)


def write_requests(folder: Path, computed: Sequence[tuple[int, int, int]]) -> None:
    """Writes which requests count: (request, sample, positions computed) of each, and so ends the folder."""
    import torch

    columns = torch.tensor(computed, dtype=torch.int64).reshape(-1, 3).T.contiguous()
    names = ("request", "sample", "n_computed")
    write_tensors(
        folder / REQUESTS, {name: column.clone() for name, column in zip(names, columns, strict=True)}
    )


def width_in(folder: Path) -> int | None:
    """The width of the rows in `folder`, by the header of a shard; None where there is no readable one."""
    for path in sorted(folder.glob("*.safetensors")):
        with contextlib.suppress(InputError):
            for name, entry in open_file(path).tensors.items():
                if name.endswith(".values"):
                    return entry.shape[1]
    return None


def read_shards(folder: Path) -> Iterator[ShardRows]:
    """The rows that count, layer by layer of one shard after another, in no particular order of requests.

    Raises InputError where the folder is not whole.
    """
    import torch

    if not (folder / REQUESTS).is_file():
        raise InputError(f"{folder} holds no {REQUESTS}: it is not a finished capture; capture again")
    requests = dict(Weights(open_file(folder / REQUESTS).tensors))
    n_samples = int(requests["sample"].max()) + 1 if len(requests["sample"]) else 1
    n_requests = int(requests["request"].max()) + 1 if len(requests["request"]) else 0
    n_computed = torch.zeros(n_requests, n_samples, dtype=torch.int64)
    n_computed[requests["request"], requests["sample"]] = requests["n_computed"]
    for path in sorted(folder.glob("*.safetensors")):
        if path.name == REQUESTS:
            continue
        shard = Weights(open_file(path).tensors)
        layers = sorted(int(name.partition(".")[0]) for name in shard.tensors if name.endswith(".values"))
        for layer in layers:
            request, sample, position, token_id = (shard.tensor(f"{layer}.{name}") for name in _COLUMNS)
            known = (request < n_requests) & (sample < n_samples)
            limit = n_computed[request.clamp_max(n_requests - 1), sample.clamp_max(n_samples - 1)]
            counts = known & (position < limit)
            values = shard.tensor(f"{layer}.values")
            if not bool(counts.all()):
                values, request, sample, position, token_id = (
                    column[counts] for column in (values, request, sample, position, token_id)
                )
            yield ShardRows(layer, values, request, sample, position, token_id)


def _tensors(rows: Sequence[ShardRows]) -> dict[str, torch.Tensor]:
    import torch

    found = {}
    for layer in sorted({one.layer for one in rows}):
        parts = [one for one in rows if one.layer == layer]
        for name in ("values", *_COLUMNS):
            found[f"{layer}.{name}"] = torch.cat([getattr(one, name) for one in parts])
    return found
