"""Which rows of a step go through the lower layers as one, by hand."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from morfi.serve.plugin.shared_layers import Histories, SharedLayers, plan
from morfi.serve.settings import prepare_process


def test_of_equal_requests_the_first_stays() -> None:
    x, y = [1, 2], [1, 2, 3]
    found = plan([b"x", None, b"y", b"x", None, b"y"], [x, [1], y, x, [1], y], 4)
    assert found is not None
    assert found.last == 4
    assert found.requests.tolist() == [0, 1, 2, 4]
    assert found.counts.tolist() == [2, 1, 3, 1]
    assert found.rows.tolist() == [0, 1, 2, 3, 4, 5, 8]
    assert found.places.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 6, 3, 4, 5]


def test_of_requests_that_begin_alike_the_rest_stays() -> None:
    found = plan([b"", b"", b""], [[5, 6, 8], [5, 6, 7, 9], [5, 6, 7]], 0)
    assert found is not None
    assert found.requests.tolist() == [0, 1, 2]
    assert found.counts.tolist() == [1, 1, 3]
    assert found.rows.tolist() == [2, 6, 7, 8, 9]
    assert found.places.tolist() == [2, 3, 0, *(2, 3, 4, 1), *(2, 3, 4)]


def test_where_nothing_is_equal_there_is_no_plan() -> None:
    assert plan([b"x", b"y", None, None], [[1]] * 4, 0) is None
    assert plan([b"x", b"x"], [[1, 2], [3, 2]], 0) is None


def test_where_too_few_rows_are_equal_there_is_no_plan() -> None:
    assert plan([b"x"] * 2, [[1, *range(2, 32)], [1, *range(40, 70)]], 0) is None


steps = st.lists(
    st.tuples(st.sampled_from([b"", b"x", None]), st.lists(st.integers(1, 2), min_size=1, max_size=6)),
    min_size=1,
    max_size=8,
)


@given(steps)
def test_a_row_has_the_values_of_one_after_the_same_history_and_tokens(
    requests: list[tuple[bytes | None, list[int]]],
) -> None:
    found = plan([history for history, _ in requests], [tokens for _, tokens in requests], 3)
    # What decides the values of each row: its request, where nothing else is known of it.
    rows: list[Hashable] = [
        (index if history is None else history, tuple(tokens[: n + 1]))
        for index, (history, tokens) in enumerate(requests)
        for n in range(len(tokens))
    ]
    n_different = len(set(rows))
    assert (found is None) == ((len(rows) - n_different) * 16 < len(rows) or n_different == len(rows))
    if found is None:
        return
    assert [rows[found.rows[place]] for place in found.places] == rows
    assert len(found.rows) == n_different
    # Each request keeps its last rows.
    ends = list(accumulate(len(tokens) for _, tokens in requests))
    kept = zip(found.requests.tolist(), found.counts.tolist(), strict=True)
    assert [row for index, n in kept for row in range(ends[index] - n, ends[index])] == found.rows.tolist()


def unknown() -> None:
    return None


def test_a_history_is_that_of_the_same_tokens_in_the_same_steps() -> None:
    known = Histories()

    def extend(request_id: str, start: int, token_ids: list[int]) -> bytes | None:
        return known.extend(request_id, start, token_ids, unknown)

    assert extend("one", 0, [5, 6, 7]) == extend("other", 0, [5, 6, 7]) == extend("third", 0, [5, 6]) == b""
    assert extend("one", 3, [8]) == extend("other", 3, [8]) not in (b"", None)
    assert extend("third", 2, [7]) not in (b"", None)
    assert extend("third", 3, [8]) != extend("one", 4, [9]) == extend("other", 4, [10])
    assert extend("one", 5, [9]) != extend("other", 5, [9])


def test_a_history_that_came_from_the_cache_is_named_by_its_blocks() -> None:
    known = Histories()
    assert known.extend("one", 2, [7], unknown) is None
    assert known.extend("one", 3, [8], unknown) is None
    assert known.extend("one", 0, [5, 6], unknown) == b"", "preempted, it is computed from the first token on"
    assert [known.extend(name, 2, [7], lambda: b"3") for name in ("two", "three")] == [b"3", b"3"]
    assert known.extend("two", 3, [8], unknown) == known.extend("three", 3, [8], unknown) is not None
    known.forget("two")
    assert known.extend("two", 4, [9], unknown) is None


def test_blocks_name_a_prefix_that_they_hold_just() -> None:
    hooks = pytest.importorskip("morfi.serve.plugin.hooks")

    def table(size: int, *ids: int) -> Any:
        return SimpleNamespace(block_size=size, get_numpy_array=lambda: np.array([ids, ids[::-1]], np.int32))

    tables = [table(2, 1, 2, 3, 4), table(4, 5, 6)]
    assert hooks._blocks(tables, 0, 4) == b"blocks" + np.array([1, 2, 5], np.int32).tobytes()
    assert hooks._blocks(tables, 1, 4) == b"blocks" + np.array([4, 3, 6], np.int32).tobytes()
    assert hooks._blocks(tables, 0, 2) is None


@pytest.mark.parametrize(
    ("what", "name", "value"),
    [
        ("model_config", "enforce_eager", False),
        ("model_config", "enable_prompt_embeds", True),
        ("model_config", "is_multimodal_model", True),
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
        model_config=SimpleNamespace(
            enforce_eager=True, enable_prompt_embeds=False, is_multimodal_model=False
        ),
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
    shared.begin(plan([b"x", b"x"], [[1], [1]], 2))
    with pytest.raises(RuntimeError, match="up to 2 were to be shared"):
        shared.check()
    shared.begin(None)
    shared.check()
