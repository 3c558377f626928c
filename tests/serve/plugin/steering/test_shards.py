"""Capture into files equals capture to the caller."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from gpu_path import call
from hooked_model import PREFIX, Served, draw_steering
from inside_engine import Asked, write_to_a_full_disk, written

from morfi.engine.protocol import Sampling
from morfi.engine.shards import read_shards
from morfi.engine.steering import Capture


def test_capture_to_shards_equals_capture_to_the_caller(served: Served, tmp_path: Path) -> None:
    engine, draw = served.engine, random.Random(8)
    n, n_tokens = (40, 20) if served.ways is None else (8, 4)  # interpreted kernels are slow
    prompts = [[draw.randrange(3, 200) for _ in range(draw.randrange(2, 60))] for _ in range(n)]
    steering = [draw_steering(served.directions, draw, len(prompt)) for prompt in prompts]
    captures = [draw.choice((None, Capture((1,)), Capture((1, 0), "all"))) for _ in prompts]
    sampling = Sampling(max_tokens=n_tokens, n=2, temperature=1.0, seed=3)
    engine.reset_prefix_cache()
    given = engine.generate(prompts, sampling, steering=steering, capture=captures)
    engine.reset_prefix_cache()
    found = call(engine, written, Asked(prompts, sampling, steering, captures), tmp_path / "captured")
    assert [[one.token_ids for one in each] for each in found] == [
        [one.token_ids for one in each] for each in given
    ]
    assert all(one.captured == () for each in found for one in each)
    rows: dict[tuple[int, int, int, int], tuple[int, torch.Tensor]] = {}
    for shard in read_shards(tmp_path / "captured"):
        labels = zip(shard.request, shard.sample, shard.position, shard.token_id, shard.values, strict=True)
        for request, sample, position, token_id, values in labels:
            key = (shard.layer, int(request), int(sample), int(position))
            assert key not in rows
            rows[key] = (int(token_id), values)
    expected = {
        (part.layer, request, sample, position): (token_id, values)
        for request, each in enumerate(given)
        for sample, one in enumerate(each)
        for part in one.captured
        for position, token_id, values in zip(part.positions, part.token_ids, part.values, strict=True)
    }
    assert rows.keys() == expected.keys()
    for key, (token_id, values) in expected.items():
        assert rows[key][0] == token_id
        torch.testing.assert_close(rows[key][1], values, rtol=1e-4, atol=1e-4)


def test_shards_that_cannot_be_written_fail_the_call_and_leave_nothing(
    served: Served, tmp_path: Path
) -> None:
    said = call(served.engine, write_to_a_full_disk, tmp_path / "captured")
    assert "cannot be written: No space left on device" in said
    assert list(tmp_path.iterdir()) == []
    assert served.engine.generate([PREFIX], Sampling(max_tokens=1), capture=Capture((0,)))[0][0].captured
