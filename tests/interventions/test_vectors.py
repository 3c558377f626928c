"""A steer run's directions as files: what stands in them, and that a server takes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from morfi.errors import InputError
from morfi.interventions.config import SteerRun
from morfi.interventions.outcome import steered
from morfi.interventions.vectors import export_vectors
from morfi.latents.find import load_found
from morfi.runs.settings import settings_of
from morfi.serve.http.vectors import read_vectors
from morfi.store import Store


def test_the_directions_of_a_steer_run_are_files_that_a_server_takes(
    steerable: tuple[Store, str], steer: Callable[..., str], tmp_path: Path
) -> None:
    store, run_id = steerable[0], steer(combine=True)
    run, settings = store.run(run_id), settings_of(store.run(run_id), SteerRun)
    same, (vectors, about) = export_vectors(store, run_id, tmp_path / "v.safetensors")
    assert (same, about) == (run_id, tmp_path / "v.json")
    tensors, facts = load_file(vectors), json.loads(about.read_text(encoding="utf-8"))
    assert set(read_vectors(vectors)) == set(tensors) == set(facts["vectors"])
    assert all(one.norm().item() == pytest.approx(1) for one in tensors.values())
    rows = load_found(store, settings.latents).sae.W_dec
    outcome = steered(store, run)
    assert outcome is not None
    for one in outcome.outcomes:
        if one.direction.kind == "combined":
            continue
        name = one.direction.direction.replace(" ", "-")
        assert facts["vectors"][name]["alpha"] == one.best.alpha
        assert facts["vectors"][name]["strength"] == one.best.strength
        assert facts["vectors"][name]["layer"] == settings.layer
        if (latent := one.direction.latent) is not None:
            assert torch.allclose(tensors[name], rows[latent] / rows[latent].norm())
    made_by = facts["made_by"]
    assert (made_by["run"], made_by["median_norm"]) == (run_id, settings.median_norm)
    assert str(tmp_path) not in about.read_text(encoding="utf-8")


def test_what_cannot_be_exported_as_vectors_is_refused(
    steerable: tuple[Store, str], steer: Callable[..., str], tmp_path: Path
) -> None:
    store, find_run = steerable
    with pytest.raises(InputError, match="is a run of `morfi find`"):
        export_vectors(store, find_run, tmp_path / "v.safetensors")
    run_id = steer()
    with pytest.raises(InputError, match="named like the JSON file"):
        export_vectors(store, run_id, tmp_path / "v.json")
    with pytest.raises(InputError, match="cannot be written"):
        export_vectors(store, run_id, tmp_path / "none" / "v.safetensors")
    with pytest.raises(InputError, match="it is a database"):
        export_vectors(store, run_id, store.path)
    (tmp_path / "w.json").write_text("mine")
    with pytest.raises(InputError, match="would be replaced"):
        export_vectors(store, run_id, tmp_path / "w.safetensors")
    assert not list(tmp_path.glob("v.*"))
    assert (tmp_path / "w.json").read_text() == "mine"
