"""Capture to disk: every row once, a slow disk waited for, a full one told."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from morfi.checkpoints.weights import write_tensors
from morfi.engine import shards
from morfi.engine.shards import ShardWriter, read_shards, write_requests
from morfi.errors import InputError


def add(writer: ShardWriter, request: int, n: int, *, layer: int = 3, sample: int = 0) -> torch.Tensor:
    values = torch.randn(n, 4, generator=torch.Generator().manual_seed(100 * request + layer))
    writer.add(layer, values, (request, sample), range(n), [50 + place for place in range(n)])
    return values


def test_rows_come_back_from_any_number_of_shards(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "rank-0", shard_bytes=500)
    written = {
        (request, layer): add(writer, request, 3, layer=layer) for request in range(9) for layer in (3, 7)
    }
    writer.close()
    write_requests(tmp_path, [(request, 0, 3) for request in range(9)])
    assert writer.failure is None
    assert len(list(tmp_path.glob("rank-0-*.safetensors"))) > 2
    found = {}
    for rows in read_shards(tmp_path):
        for request in set(rows.request.tolist()):
            here = rows.request == request
            assert rows.position[here].tolist() == [0, 1, 2]
            assert rows.token_id[here].tolist() == [50, 51, 52]
            found[request, rows.layer] = rows.values[here]
    assert found.keys() == written.keys()
    assert all(torch.equal(found[key], values) for key, values in written.items())


def test_rows_that_do_not_count_are_left_out(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "rank-0", shard_bytes=1 << 20)
    first = add(writer, 0, 3)
    add(writer, 1, 2)  # of a request that failed
    second = add(writer, 0, 2, sample=1)
    writer.close()
    write_requests(tmp_path, [(0, 0, 2), (0, 1, 2)])
    (rows,) = read_shards(tmp_path)
    assert torch.equal(rows.values, torch.cat([first[:2], second]))
    assert rows.sample.tolist() == [0, 0, 1, 1]


def test_an_unfinished_folder_is_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "rank-0", shard_bytes=1)
    add(writer, 0, 1)
    writer.close()
    with pytest.raises(InputError, match="not a finished capture"):
        list(read_shards(tmp_path))


def test_a_slow_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, n_added = threading.Semaphore(0), 0
    write = write_tensors

    def slow(*args: Any) -> None:
        disk.acquire()
        write(*args)

    def fill() -> None:
        nonlocal n_added
        for request in range(10):
            add(writer, request, 1)
            n_added += 1

    monkeypatch.setattr(shards, "write_tensors", slow)
    writer = ShardWriter(tmp_path, "rank-0", shard_bytes=1)
    model = threading.Thread(target=fill)
    model.start()
    model.join(timeout=0.5)
    assert model.is_alive()
    assert n_added == 1 + shards._N_WAITING  # one is being written
    disk.release(10)
    model.join()
    writer.close()
    assert n_added == len(list(tmp_path.glob("rank-0-*"))) == 10


def test_a_full_disk_is_told_and_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "write_tensors", full)
    writer = ShardWriter(tmp_path, "rank-0", shard_bytes=1)
    for request in range(20):
        add(writer, request, 1)
    writer.close()
    assert writer.failure == "No space left on device"
