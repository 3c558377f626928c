"""Which cores each of several engines has."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from morfi.errors import InputError
from morfi.fleet import ray_engines
from morfi.fleet.ray_engines import cores_of, world_size

N_SOCKETS, N_CORES, N_THREADS = 2, 4, 2  # sockets, cores of each, threads of each core
PLACES = [(s, c, t) for s in range(N_SOCKETS) for c in range(N_CORES) for t in range(N_THREADS)]
# How systems number the threads: all of a core together, first the first of every core, sockets in turn.
NUMBERINGS: list[Callable[[tuple[int, int, int]], tuple[int, ...]]] = [
    lambda place: place,
    lambda place: (place[2], place[0], place[1]),
    lambda place: (place[2], place[1], place[0]),
]


@pytest.mark.parametrize("numbering", NUMBERINGS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 16])
def test_engines_share_no_core_where_there_are_enough(
    n: int, numbering: Callable[..., tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = sorted(PLACES, key=numbering)
    for number, (socket, core, _) in enumerate(places):
        topology = tmp_path / f"cpu{number}" / "topology"
        topology.mkdir(parents=True)
        same = [str(i) for i, place in enumerate(places) if place[:2] == (socket, core)]
        (topology / "physical_package_id").write_text(f"{socket}\n")
        (topology / "thread_siblings_list").write_text(",".join(same) + "\n")
    monkeypatch.setattr(ray_engines, "_CORES", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(len(places))))
    parts = [cores_of(number, n) for number in range(n)]
    assert sorted(number for part in parts for number in part) == list(range(len(places)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    cores = [{places[number][:2] for number in part} for part in parts]
    n_shared = sum(map(len, cores)) - N_SOCKETS * N_CORES
    assert n_shared == {3: 1, 16: 8}.get(n, 0)
    if n in (2, 4, 8):
        assert all(len({socket for socket, _ in part}) == 1 for part in cores)


def test_a_system_that_does_not_say_where_cores_are_parts_them_by_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engines, "_CORES", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 3, 7})
    assert [cores_of(number, 2) for number in (0, 1)] == [[0, 2], [3, 7]]


@pytest.mark.parametrize("value", ["abc", None, 0, 1.9, True, [2]])
@pytest.mark.parametrize("name", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_what_is_no_number_of_gpus_is_refused_by_name(name: str, value: object) -> None:
    assert world_size({name: 2, "max_num_seqs": 4}) == 2
    with pytest.raises(InputError, match=f"engine: {name} is .*whole number"):
        world_size({name: value})
