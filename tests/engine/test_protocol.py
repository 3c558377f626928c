"""What an engine is asked is checked where it is said, before any engine."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from morfi.engine.directions import Direction
from morfi.engine.protocol import Sampling, check_prompts
from morfi.engine.steering import Capture
from morfi.errors import InputError
from morfi.serve.engine import start_engine
from morfi.serve.plugin.requested import wanted_of

NUMBERS = st.integers(-(10**12), 10**12) | st.floats()
ANYTHING = NUMBERS | st.none() | st.booleans() | st.text(max_size=2) | st.just([1])
FIELDS = ("max_tokens", "temperature", "top_k", "n", "seed")


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, ANYTHING)))
def test_a_sampling_is_sound_or_refused(fields: dict[str, Any]) -> None:
    try:
        made = Sampling(**fields)
    except InputError:
        return
    assert made.max_tokens >= 1
    assert made.top_k >= 0
    assert 0 <= made.temperature < math.inf
    assert made.n == 1 or made.temperature > 0
    assert made.seed is None or 0 <= made.seed < 2**32


@given(st.lists(st.lists(st.integers(-2, 12), max_size=6), max_size=3))
def test_prompts_are_token_ids_with_room_for_an_answer_or_refused(prompts: list[list[int]]) -> None:
    sound = all(0 < len(prompt) < 5 and all(0 <= token < 10 for token in prompt) for prompt in prompts)
    if sound:
        check_prompts(prompts, 5, 10)
    else:
        with pytest.raises(InputError, match=r"prompt \d of \d (has|holds)"):
            check_prompts(prompts, 5, 10)


@pytest.mark.parametrize("prompt", ["text", 3, None, b"ab", ["a"], [1.5], [[1]], [None], torch.ones(3)])
def test_what_is_no_list_of_token_ids_is_refused(prompt: Any) -> None:
    with pytest.raises(InputError, match=r"prompt 1 of 2 .* expected .*token ids"):
        check_prompts([[1, 2], prompt], 50, 10)


def test_what_is_given_for_each_prompt_has_their_number() -> None:
    lengths: list[dict[str, Any]] = [
        {"sampling": [Sampling()]},
        {"steering": [[]]},
        {"capture": [None] * 3},
    ]
    for given_ in lengths:
        asked: dict[str, Any] = {"sampling": Sampling(), "steering": None, "capture": None} | given_
        with pytest.raises(InputError, match=r"were given for 2 prompts; give one for each"):
            wanted_of(2, **asked)


def test_a_name_is_no_checkpoint_yet() -> None:
    name: Any = "smollm2"
    with pytest.raises(InputError, match=r"give resolve\('smollm2'\)"):
        start_engine(name, context=64)


@pytest.mark.parametrize("layers", [[1, 2], (1, 2), range(1, 3)])
def test_layers_are_any_sequence(layers: Any) -> None:
    assert Capture(layers).layers == (1, 2)


@pytest.mark.parametrize("layers", [(), [], range(0), range(10**12), 3, "12", None, [1, 1], [-1]])
def test_layers_that_cannot_be_captured_are_refused(layers: Any) -> None:
    with pytest.raises(InputError):
        Capture(layers)


@pytest.mark.parametrize(
    "vector", [None, torch.ones(3, device="meta"), torch.ones(3).to_sparse(), "abc", [], [None], object()]
)
def test_what_is_no_direction_is_refused(vector: Any) -> None:
    with pytest.raises(InputError, match=r"a direction's vector|a number of a direction's vector"):
        Direction(vector)


def test_an_array_may_run_backwards() -> None:
    backwards: Any = np.arange(1.0, 4.0)[::-1]
    assert Direction(backwards).vector.tolist() == [3.0, 2.0, 1.0]
