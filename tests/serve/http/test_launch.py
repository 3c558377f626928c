"""From the options of `morfi serve` to what it serves: SAEs by name, and find runs of one series."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_app import make_sae

from morfi.errors import InputError
from morfi.serve.http.launch import ServeConfig, _named, _of_one_series, prepare_server
from morfi.serve.http.steerable import ServedSae, name_of
from morfi.store import Store
from morfi.terminal import Progress


def sae(name: str, sha256: str, layer: int | None = 1) -> ServedSae:
    found = make_sae(name, layer)
    found.sha256, found.sae.release = sha256, f"/models/{sha256}/{name}"  # type: ignore[misc]
    return found


def find_run(run_id: str, own: ServedSae, series: str = "one") -> Any:
    made = SimpleNamespace(sha256=series, source=f"train-{series}")
    return SimpleNamespace(run_id=run_id, sae=own, series=made)


def test_an_sae_is_called_as_it_was_given_without_where_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / "my-sae"
    folder.mkdir()
    assert name_of(str(folder)) == "my-sae"
    for source in ("gemma-scope-9b-pt-res-canonical:layer_20/width_16k/canonical", "gemma-2-9b"):
        assert name_of(source) == source


def test_find_runs_of_one_sae_share_it() -> None:
    runs = [find_run("find-1", sae("a", "1")), find_run("find-2", sae("a", "1"))]
    first, second = _named(runs, [sae("a", "1"), sae("b", "2")])
    assert (first.name, second.name) == ("a", "b")
    assert {id(run.sae) for run in runs} == {id(first)}


@pytest.mark.parametrize("other", [sae("a", "2"), sae("a", "1", 0)])
def test_one_name_for_two_saes_is_refused(other: ServedSae) -> None:
    with pytest.raises(InputError, match="two different SAEs are called a"):
        _named([find_run("find-1", sae("a", "1"))], [other])


@pytest.mark.parametrize("other", [sae("a", "1"), sae("a", "2"), sae("a", "1", 0)])
def test_two_saes_of_one_name_are_refused(other: ServedSae) -> None:
    with pytest.raises(InputError, match="--sae gives two SAEs of the name a; leave one out"):
        _named([], [sae("a", "1"), sae("b", "2"), other])


def test_find_runs_of_other_checkpoints_are_refused() -> None:
    one = find_run("find-1", sae("a", "1"))
    assert _of_one_series([one]) == (one,)
    with pytest.raises(InputError, match="--latents find-1 is given twice"):
        _of_one_series([one, find_run("find-1", sae("a", "1"))])
    with pytest.raises(
        InputError, match="find-1 is of the checkpoints of train-one, find-2 of those of train-two"
    ):
        _of_one_series([one, find_run("find-2", sae("a", "1"), "two")])


def test_a_level_without_a_find_run_is_told_what_it_needs(
    log: Progress, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--ckpt M_7 is a level of a train run; give --latents RUN"):
        prepare_server(ServeConfig("M_7"), Store(tmp_path / "none.duckdb"), log)
