"""Which requests of a step go through the lower layers as one, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from morfi.serve.plugin.shared_layers import Prefix, SharedLayers, plan
from morfi.serve.settings import prepare_process


def test_of_equal_requests_the_first_stays() -> None:
    found = plan([b"x", None, b"y", b"x", None, b"y"], [2, 1, 3, 2, 1, 3], 4)
    assert found is not None
    assert found.last == 4
    assert found.requests.tolist() == [0, 1, 2, 4]
    assert found.counts.tolist() == [2, 1, 3, 1]
    assert found.rows.tolist() == [0, 1, 2, 3, 4, 5, 8]
    assert found.places.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 6, 3, 4, 5]


def test_where_nothing_is_equal_there_is_no_plan() -> None:
    assert plan([b"x", b"y", None, None], [1, 1, 1, 1], 0) is None


def test_a_prefix_is_equal_to_one_of_the_same_tokens_in_the_same_steps() -> None:
    one, other, third = Prefix(), Prefix(), Prefix()
    assert one.extend(0, [5, 6, 7]) == other.extend(0, [5, 6, 7]) is not None
    assert one.extend(3, [8]) == other.extend(3, [8])
    assert one.extend(4, [9]) != other.extend(4, [10])
    assert third.extend(0, [5, 6, 7, 8]) not in (one.digest, other.digest)


def test_a_prefix_that_came_from_the_cache_has_no_equal() -> None:
    one = Prefix()
    assert one.extend(2, [7]) is None
    assert one.extend(3, [8]) is None
    assert one.extend(0, [5, 6]) is not None, "preempted, it is computed from the first token on"


@pytest.mark.parametrize(
    ("what", "name", "value"),
    [
        ("model_config", "enforce_eager", False),
        ("model_config", "enable_prompt_embeds", True),
        ("parallel_config", "pipeline_parallel_size", 2),
        ("", "lora_config", object()),
        ("", "kv_transfer_config", object()),
        ("structure", "by_rows", False),
        ("", "", None),
    ],
)
def test_nothing_is_shared_where_equal_tokens_may_differ(what: str, name: str, value: Any) -> None:
    prepare_process(gpu=False, verbose=False)
    layers = pytest.importorskip("morfi.serve.plugin.decoder_layers")
    runner = object.__new__(layers.CPUModelRunner)
    runner.vllm_config = config = SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=True, enable_prompt_embeds=False),
        parallel_config=SimpleNamespace(pipeline_parallel_size=1),
        lora_config=None,
        kv_transfer_config=None,
    )
    structure = SimpleNamespace(layers=[], by_rows=True)
    if what == "structure":
        setattr(structure, name, value)
    elif name:
        setattr(getattr(config, what) if what else config, name, value)
    assert (layers._shared_layers(runner, structure) is None) == bool(name)


def test_a_plan_that_was_not_carried_out_is_an_error() -> None:
    shared = SharedLayers([], dict)
    shared.begin(plan([b"x", b"x"], [1, 1], 2))
    with pytest.raises(RuntimeError, match="up to 2 were to be shared"):
        shared.check()
    shared.begin(None)
    shared.check()
