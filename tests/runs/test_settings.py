from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_record import run_record

from morfi.errors import InputError
from morfi.evaluation.config import EvalConfig
from morfi.latents.find import FindRun
from morfi.runs.settings import settings_of, to_store
from morfi.store.records import Asked
from morfi.training.mixtures import MixConfig

RUN = run_record("mix-1", kind="mix", config={"split_run": "split-1"})


@given(
    levels=st.lists(st.integers(0, 100), min_size=1, max_size=4, unique=True).map(tuple),
    size=st.integers(1, 10**6),
    nested=st.booleans(),
)
def test_settings_read_back_as_they_were_written(levels: tuple[int, ...], size: int, nested: bool) -> None:
    settings = MixConfig("split-1", levels=levels, size=size, nested=nested)
    stored = json.loads(json.dumps(asdict(settings)))
    assert settings_of(replace(RUN, config=stored), MixConfig) == settings


@given(
    relations=st.lists(st.text(), max_size=3).map(tuple),
    limit=st.none() | st.integers(1, 10**9),
    engine=st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text(), max_size=3),
)
def test_an_evaluation_reads_back_with_whole_paths(
    relations: tuple[str, ...], limit: int | None, engine: dict[str, Any]
) -> None:
    settings = EvalConfig("smollm2", relations=relations, limit=limit, engine=engine)
    run = replace(RUN, config=json.loads(json.dumps(to_store(settings))))
    assert settings_of(run, EvalConfig) == settings
    assert settings_of(replace(run, config=to_store(replace(settings, data="."))), EvalConfig).data == str(
        Path().absolute()
    )


def test_settings_that_were_not_stored_yet_are_what_held_then() -> None:
    assert settings_of(RUN, MixConfig) == MixConfig("split-1")
    before = {"activations": "a", "sae": "s", "layer": 3, "epochs": "1", "split_run": "p", "sae_sha256": "h"}
    before |= {"property": "dose", "unit": None}
    found = settings_of(replace(RUN, config=before), FindRun)
    assert (found.method, found.rho_of) == ("fdr", "trainings")


@pytest.mark.parametrize("config", [{}, {"split_run": "split-1", "later": 1}])
def test_settings_of_another_morfi_are_refused_in_one_line(config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"mix-1 was made by another morfi.*run `morfi mix` again") as caught:
        settings_of(replace(RUN, config=config), MixConfig)
    assert "\n" not in str(caught.value)


def test_how_questions_were_asked_is_read_of_any_run() -> None:
    assert RUN.asked == Asked()
    config = {"shots": 0, "limit": None, "match": "strict", "max_tokens": 3, "samples": 2, "batch": 7}
    assert replace(RUN, config=config).asked == Asked(shots=0, match="strict", max_tokens=3, samples=2)


def test_a_name_that_no_file_can_have_is_stored_as_it_is() -> None:
    for name in ("x" * 300, "a\0b", "~nobody-of-that-name/x"):
        assert to_store(EvalConfig(name))["ckpt"] == name
