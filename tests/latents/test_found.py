"""A find run comes back as it was, or is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from morfi.errors import InputError
from morfi.latents.find import load_found


def test_latents_sae_and_norms_are_those_of_the_run(find_run: tuple[Any, str]) -> None:
    found = load_found(*find_run)
    assert (found.layer, len(found.latents), found.latents["latent"][0].as_py()) == (1, 16, 0)
    assert found.sae.encoder.d_sae == 16
    last = found.activations.residuals[-1]
    assert found.residuals(last.row.ckpt_sha256) is last
    assert found.median_norm(last.row.ckpt_sha256) == float(last.values.norm(dim=1).median())
    everything = torch.cat([one.values for one in found.activations.residuals])
    assert found.median_norm("of no checkpoint") == float(everything.norm(dim=1).median())


def test_another_sae_in_its_place_is_refused(find_run: tuple[Any, str], identity_sae: Path) -> None:
    from safetensors.torch import load_file, save_file

    store, run_id = find_run
    weights = identity_sae / "sae_weights.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"b_dec": tensors["b_dec"] + 1}, weights)
    with pytest.raises(InputError, match="is not the SAE of find-"):
        load_found(store, run_id)
    shutil.rmtree(identity_sae)
    with pytest.raises(InputError, match="no such folder"):
        load_found(store, run_id)


def test_a_run_of_another_command_is_refused(find_run: tuple[Any, str]) -> None:
    store, run_id = find_run
    with pytest.raises(InputError, match="is a run of `morfi capture`"):
        load_found(store, store.run(run_id).config["activations"])
