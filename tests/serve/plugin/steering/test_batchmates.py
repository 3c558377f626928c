"""A steered request is kept apart from its batchmates, its samples and what is cached."""

from __future__ import annotations

import pytest
import torch
from gpu_path import call
from hooked_model import ALWAYS, PREFIX, Served
from inside_engine import as_named, beside_another

from morfi.engine.protocol import Sampling
from morfi.engine.steering import Capture, Steering


@pytest.mark.parametrize("steered_first", [True, False])
def test_a_shared_prefix_is_never_taken_over(served: Served, steered_first: bool) -> None:
    """vLLM caches keys and values by token ids: a steered request must not leave its own to a plain one."""
    sampling = Sampling(max_tokens=6)
    prompt = [*PREFIX, *PREFIX[:8]]
    steering: dict[bool, list[list[Steering]]] = {
        True: [[Steering(0, served.names[1], strength=2.0)]],
        False: [[]],
    }
    cold = {}
    for is_steered, wanted in steering.items():
        served.engine.reset_prefix_cache()
        cold[is_steered] = served.engine.generate([prompt], sampling, steering=wanted)[0][0].token_ids
    assert cold[True] != cold[False]
    served.engine.reset_prefix_cache()
    for is_steered in (steered_first, not steered_first):
        (found,) = served.engine.generate([prompt], sampling, steering=steering[is_steered])[0]
        assert found.token_ids == cold[is_steered]
        assert found.n_cached_tokens == 0
    (again,) = served.engine.generate([prompt], sampling, steering=steering[True])[0]
    assert again.token_ids == cold[True]
    assert again.n_cached_tokens > 0
    assert again.applied[0].n_tokens == len(prompt) + len(again.token_ids) - 1


@pytest.mark.parametrize("served", ALWAYS, indirect=True)
def test_each_of_several_samples_is_steered(served: Served) -> None:
    sampling = Sampling(max_tokens=5, n=3, temperature=1.0, seed=7)
    wanted = [Steering(1, served.names[0], strength=1.0)]
    (several,) = served.engine.generate([PREFIX], sampling, steering=[wanted], capture=Capture((1,), "all"))
    assert len(several) == 3
    for completion in several:
        n_computed = len(PREFIX) + len(completion.token_ids) - 1
        assert completion.applied[0].n_tokens == n_computed
        assert completion.captured[0].token_ids == (*PREFIX, *completion.token_ids)[:n_computed]


@pytest.mark.parametrize("served", ALWAYS, indirect=True)
def test_a_refused_request_changes_nothing_for_its_batchmates(served: Served) -> None:
    steering = {"layer": 0, "direction": served.names[0], "strength": 1.0}
    good = {"steering": [steering], "capture": {"layers": [1], "positions": "all"}, "report": True}
    bad = {"steering": [{**steering, "strength": float("nan")}]}
    found, refusal = call(served.engine, beside_another, good, bad)
    assert "finite number" in refusal
    alone, _ = call(served.engine, beside_another, good, None)
    assert alone == found
    assert alone[0]["captured"]["1"][2]


@pytest.mark.parametrize("served", ALWAYS, indirect=True)
def test_request_ids_that_begin_alike_are_kept_apart(served: Served) -> None:
    wanted = {"1": 1.0, "11": -2.0, "1-1": 0.5, "0_1": 3.0, "1_1": -1.0}
    name = served.names[0]
    found = call(served.engine, as_named, name, wanted)
    (plain,) = served.engine.generate([PREFIX[:6]], Sampling(max_tokens=1), capture=Capture((1,)))[0]
    for request_id, strength in wanted.items():
        for report in found[request_id]:
            values = torch.frombuffer(bytearray(report["captured"]["1"][2]), dtype=torch.float32)
            change = values - plain.captured[0].values[0]
            expected = strength * served.directions[name].vector
            torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-4)
