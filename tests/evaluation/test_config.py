from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morfi.errors import InputError
from morfi.evaluation.config import EvalConfig, configure
from morfi.runs.options import MAX_SEED

CONFIGS = st.builds(
    EvalConfig,
    ckpt=st.text(),
    base=st.none() | st.text(),
    split=st.none() | st.sampled_from(["dev", "test"]),
    relations=st.lists(st.text(), max_size=3).map(tuple),
    limit=st.none() | st.integers(1, 10**9),
    shots=st.integers(0, 100),
    chat=st.booleans(),
    match=st.sampled_from(["squad", "strict", "contains"]),
    seed=st.integers(0, MAX_SEED),
    engine=st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text(), max_size=3),
)


@given(CONFIGS)
def test_a_resumed_run_takes_its_stored_configuration_or_the_same_options_again(config: EvalConfig) -> None:
    assert configure({}, config) == config
    assert configure(asdict(config), config) == config
    assert configure(dict.fromkeys(asdict(config)), config) == config


@pytest.mark.parametrize(
    ("option", "value"),
    [("ckpt", "other"), ("limit", 3), ("relations", ("P36",)), ("chat", True), ("max_tokens", 17)],
)
def test_an_option_unlike_the_resumed_runs_is_refused_by_its_name(option: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"--{option.replace('_', '-')} is .*without --resume") as caught:
        configure({option: value}, EvalConfig("smollm2", relations=("P17",)))
    assert repr(value) in str(caught.value)


def test_options_that_are_not_given_take_their_defaults() -> None:
    given = {field.name: None for field in fields(EvalConfig)} | {"ckpt": "smollm2", "limit": 5}
    assert configure(given, None) == EvalConfig("smollm2", limit=5)


def test_a_new_run_needs_a_checkpoint() -> None:
    with pytest.raises(InputError, match="--ckpt is missing"):
        configure({"ckpt": None, "limit": 5}, None)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("limit", 0, "at least 1"),
        ("shots", -1, "at least 0"),
        ("max_tokens", 0, "at least 1"),
        ("seed", -1, "at least 0"),
        ("seed", 2**32, f"at most {2**32 - 1}"),
        ("batch", 0, "at least 1"),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_value_and_the_bound(
    option: str, value: Any, expected: str
) -> None:
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')} is {value}; expected {expected}$"):
        EvalConfig("smollm2", **{option: value})


def test_an_unknown_way_to_match_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r'--match is "squd"; expected one of .*Did you mean "squad"\?'):
        EvalConfig("smollm2", match="squd")
