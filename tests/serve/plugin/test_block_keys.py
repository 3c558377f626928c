"""Blocks of vLLM's prefix cache have one key just where their tokens and all steering are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from position_ranges import ranges

from morfi.engine.steering import Capture, Latent, Positions, Steering, to_json
from morfi.serve.plugin import hooks
from morfi.serve.plugin.block_keys import block_key
from morfi.serve.settings import prepare_process

BLOCK = 4
Hasher = Callable[[Any], list[bytes]]

places = st.integers(-7, 14)
positions = st.sampled_from(["all", "prompt", "generated", "last_prompt"]) | st.lists(
    places | ranges(places), min_size=1, max_size=3
).map(tuple)
steerings = st.lists(
    st.builds(
        Steering,
        st.sampled_from([0, 1]),
        st.sampled_from(["a", Latent("s", 1)]),
        strength=st.sampled_from([0.0, 1.0, 1.5]),
        positions=positions,
    ),
    max_size=2,
)
# Few tokens, so that beginnings are often the same.
sequences = st.tuples(st.lists(st.sampled_from([5, 6]), min_size=1, max_size=9), st.integers(0, 8))


@pytest.fixture(scope="module")
def hasher() -> Hasher:
    """The function with which vLLM makes the keys of a request's blocks, where the plugin is loaded."""
    prepare_process(gpu=False, verbose=False)
    from vllm.utils.hashing import sha256
    from vllm.v1.core import kv_cache_utils

    hooks.register()
    kv_cache_utils.init_none_hash(sha256)
    found: Hasher = kv_cache_utils.get_request_block_hasher(BLOCK, sha256)
    return found


def request(
    prompt: Sequence[int], n_answer: int, steering: Sequence[Steering], hasher: Hasher | None, **more: Any
) -> Any:
    """vLLM's request after `n_answer` tokens of its answer, all of them 5."""
    from vllm import SamplingParams
    from vllm.v1.request import Request

    specification = {**to_json(steering, Capture((0,))), "report": True, "shard": None, "directions": {}}
    params = SamplingParams(max_tokens=64, extra_args={"morfi": specification})
    found = Request("r", list(prompt), params, None, block_hasher=hasher, **more)
    for _ in range(n_answer):
        found.append_output_token_ids(5)
    return found


def is_meant(place: int, wanted: Positions, n_prompt: int) -> bool:
    """Whether the position `place` is one of those `wanted`, from their definition."""
    if isinstance(wanted, str):
        return {
            "all": True,
            "prompt": place < n_prompt,
            "generated": place >= n_prompt,
            "last_prompt": place == n_prompt - 1,
        }[wanted]

    def absolute(given: int) -> int:
        return given + n_prompt if given < 0 else given

    return any(
        place == absolute(one)
        if isinstance(one, int)
        else absolute(one[0]) <= place and (one[1] is None or place < absolute(one[1]))
        for one in wanted
    )


def history(prompt: Sequence[int], n_answer: int, steering: Sequence[Steering], stop: int) -> list[Any]:
    """All that the keys and values of the positions before `stop` depend on."""
    tokens = [*prompt, *[5] * n_answer]
    return [
        (
            tokens[place],
            [
                (one.layer, one.direction, one.strength)
                for one in steering
                if one.strength and is_meant(place, one.positions, len(prompt))
            ],
        )
        for place in range(stop)
    ]


@settings(max_examples=300, deadline=None)
@given(sequences, steerings, sequences, steerings)
def test_keys_are_equal_just_where_tokens_and_steering_are(
    hasher: Hasher,
    one: tuple[list[int], int],
    its: list[Steering],
    other: tuple[list[int], int],
    others: list[Steering],
) -> None:
    keys = request(*one, its, hasher).block_hashes, request(*other, others, hasher).block_hashes
    assert len(keys[0]) == (len(one[0]) + one[1]) // BLOCK
    for number, (first, second) in enumerate(zip(*keys, strict=False), 1):
        same = history(*one, its, number * BLOCK) == history(*other, others, number * BLOCK)
        assert (first == second) == same


def test_unsteered_blocks_have_the_keys_of_vllm_alone(hasher: Hasher) -> None:
    from vllm import SamplingParams
    from vllm.v1.request import Request

    prompt = list(range(20))
    plain = Request("p", prompt, SamplingParams(max_tokens=1), None, block_hasher=hasher).block_hashes
    last = request(prompt, 0, [Steering(0, "a", strength=1.0, positions=(-1,))], hasher).block_hashes
    assert [a == b for a, b in zip(plain, last, strict=True)] == [True] * 4 + [False]
    nothing = request(prompt, 0, [Steering(0, "a")], hasher).block_hashes
    assert nothing == plain


def test_a_users_own_salt_still_keeps_requests_apart(hasher: Hasher) -> None:
    prompt, steering = list(range(8)), [Steering(0, "a", strength=1.0, positions=((4, None),))]
    keys = [
        request(prompt, 0, some, hasher, cache_salt=salt).block_hashes[0]
        for some in (steering, [])
        for salt in ("x", "y", None)
    ]
    assert keys[:3] == keys[3:], "nothing is steered in the first block"
    assert len(set(keys)) == 3


def test_every_part_of_a_steering_is_in_the_key() -> None:
    def key(steering: Steering) -> Any:
        return block_key(request([5] * 4, 0, [steering], None), 0, 4)

    found = [
        key(Steering(layer, direction, operation, strength))
        for layer in (0, 1)
        for direction in ("a", "b", Latent("a", 1), Latent("b", 1), Latent("a", 2))
        for operation, strength in (
            ("add", 1.0),
            ("add", -1.0),
            ("clamp", 1.0),
            ("clamp", 0.0),
            ("ablate", 0.0),
        )
    ]
    assert None not in found
    assert len(set(found)) == len(found)
