"""A steered request is kept apart from its batchmates, its samples and what is cached."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hooked_model import PREFIX, Served

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


def test_each_of_several_samples_is_steered(served: Served) -> None:
    sampling = Sampling(max_tokens=5, n=3, temperature=1.0, seed=7)
    wanted = [Steering(1, served.names[0], strength=1.0)]
    (several,) = served.engine.generate([PREFIX], sampling, steering=[wanted], capture=Capture((1,), "all"))
    assert len(several) == 3
    for completion in several:
        n_computed = len(PREFIX) + len(completion.token_ids) - 1
        assert completion.applied[0].n_tokens == n_computed
        assert completion.captured[0].token_ids == (*PREFIX, *completion.token_ids)[:n_computed]


def test_a_refused_request_changes_nothing_for_its_batchmates(served: Served) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    core = served.engine._llm.llm_engine
    good = {
        "steering": [{"layer": 0, "direction": served.names[0], "strength": 1.0}],
        "capture": {"layers": [1], "positions": "all"},
        "report": True,
    }
    bad = {"steering": [{"layer": 0, "direction": served.names[0], "strength": float("nan")}]}

    def run(*, with_bad: bool) -> list[Any]:
        served.engine.reset_prefix_cache()
        own_ids = []
        for number, specification in enumerate((good, bad, good)):
            params = SamplingParams(temperature=0, max_tokens=4, extra_args={"morfi": specification})
            prompt = {"prompt_token_ids": [*PREFIX, 3 + number]}
            if specification is good:
                own_ids.append(core.add_request(f"mate-{number}", prompt, params))
            elif with_bad:
                with pytest.raises(VLLMValidationError, match="finite number"):
                    core.add_request("bad", prompt, params)
            core.step()
        while core.has_unfinished_requests():
            core.step()
        return list(core.collective_rpc("morfi_take_reports", args=(own_ids,)))

    alone, beside = run(with_bad=False), run(with_bad=True)
    assert alone == beside
    assert alone[0][0]["captured"]["1"][2]


def test_request_ids_that_begin_alike_are_kept_apart(served: Served) -> None:
    from vllm import SamplingParams

    core, names = served.engine._llm.llm_engine, served.names
    wanted = {"1": 1.0, "11": -2.0, "1-1": 0.5, "0_1": 3.0, "1_1": -1.0}
    own_ids = {}
    for request_id, strength in wanted.items():
        specification = {
            "steering": [{"layer": 1, "direction": names[0], "strength": strength}],
            "capture": {"layers": [1]},
            "report": True,
        }
        params = SamplingParams(temperature=1, seed=1, max_tokens=1, n=2, extra_args={"morfi": specification})
        own_ids[request_id] = core.add_request(request_id, {"prompt_token_ids": PREFIX[:6]}, params)
    while core.has_unfinished_requests():
        core.step()
    (plain,) = served.engine.generate([PREFIX[:6]], Sampling(max_tokens=1), capture=Capture((1,)))[0]
    for request_id, strength in wanted.items():
        children = [f"{number}_{own_ids[request_id]}" for number in range(2)]
        (reports,) = core.collective_rpc("morfi_take_reports", args=(children,))
        for report in reports:
            values = torch.frombuffer(bytearray(report["captured"]["1"][2]), dtype=torch.float32)
            change = values - plain.captured[0].values[0]
            expected = strength * served.directions[names[0]].vector
            torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-4)
