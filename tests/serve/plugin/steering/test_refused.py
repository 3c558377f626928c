"""Specifications: those of vLLM's own users, and those that are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from gpu_path import call
from hooked_model import PREFIX, Served
from inside_engine import answers_of_vllm, is_idle

from morfi.engine.protocol import Sampling
from morfi.engine.steering import Steering
from morfi.errors import InputError


@pytest.mark.parametrize(
    ("steering", "message"),
    [
        (Steering(2, "LATENT"), "the model has the layers 0 to 1"),
        (Steering(0, "nothing"), "no direction 'nothing' is registered"),
        (Steering(0, "VECTOR", "clamp", 1.0), "clamp needs a latent with its encoder"),
    ],
)
def test_a_bad_specification_is_refused_before_any_request_runs(
    served: Served, steering: Steering, message: str
) -> None:
    names: dict[Any, Any] = {"LATENT": served.latents()[0], "VECTOR": served.names[0]}
    bad = Steering(
        steering.layer,
        names.get(steering.direction, steering.direction),
        steering.operation,
        steering.strength,
    )
    with pytest.raises(InputError, match=message):
        served.engine.generate([PREFIX, PREFIX], Sampling(), steering=[[], [bad]])
    assert call(served.engine, is_idle)


def test_vllm_alone_takes_the_same_specification(served: Served) -> None:
    """Users of vLLM itself pass it in `extra_args`, directions as numbers; batchmates notice nothing."""
    vector = served.directions[served.names[1]].vector
    entry = {"layer": 0, "direction": vector.tolist(), "strength": 2.0}
    prompt = [*PREFIX, 9]
    steered, plain = call(served.engine, answers_of_vllm, prompt, [entry, None])
    named = [Steering(0, served.names[1], strength=2.0)]
    ours = served.engine.generate([prompt, prompt], Sampling(max_tokens=6), steering=[named, []])
    n = [len(completions[0].token_ids) for completions in ours]
    assert steered[: n[0]] == list(ours[0][0].token_ids)
    assert plain[: n[1]] == list(ours[1][0].token_ids)
    assert steered != plain
    for broken in ({**entry, "layer": 9}, {**entry, "direction": [1.0]}, {**entry, "strenght": 1}):
        refusal = call(served.engine, answers_of_vllm, prompt, [broken])
        assert re.search(r"layers 0 to 1|has the width 64|strength", refusal)
