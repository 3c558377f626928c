"""Options are keys where an experiment speaks of them."""

from __future__ import annotations

import pytest

from morfi.errors import FaultsError, MorfiError
from morfi.experiment.keys import as_keys, said_of


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ("--size is 0; expected at least 1", "size is 0; expected at least 1"),
        ("give --shots 0, or --n-ex 1", "give shots 0, or n-ex 1"),
        ("leave early stopping out (--no-early-stop)", "leave early stopping out (early-stop = false)"),
        ("run `morfi split --ckpt` again, with --ckpt", "run `morfi split --ckpt` again, with ckpt"),
        ("give --db the file", "give --db the file"),
        ("a -- b, x--y", "a -- b, x--y"),
    ],
)
def test_an_option_is_named_by_its_key(said: str, key: str) -> None:
    assert as_keys(said) == key


def test_what_a_stage_says_is_said_of_its_table() -> None:
    with pytest.raises(MorfiError, match=r"^\[sae\.train\] k is 0$"), said_of("sae train"):
        raise MorfiError("--k is 0")
    with pytest.raises(FaultsError, match=r"^x\.toml: 1 fault\n"), said_of("sweep"):
        raise FaultsError("x.toml", ["a"])
