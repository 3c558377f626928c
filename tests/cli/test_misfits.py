"""Layers and widths that the model does not have: refused by every command, before an engine starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import CommandLine
from safetensors.torch import load_file, save_file

LAYERS, WIDTH = 2, 16  # of the tiny model


@pytest.fixture
def refused(run: CommandLine, tiny_model: Path, serving: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command that must be refused without any engine, and gives what it said."""

    def serve(*_: Any, **__: Any) -> None:
        raise AssertionError("a server would start")

    monkeypatch.setattr("morfi.serve.http.server.run_server", serve)

    def say(*arguments: object) -> str:
        ended = run(*(tiny_model if one == "MODEL" else one for one in arguments))
        assert ended.code == 2, ended.err
        assert not serving.starts
        assert "direction" not in ended.err
        return ended.err

    return say


@pytest.fixture
def sae(tmp_path: Path) -> Any:
    """Writes an SAE for a residual stream of some width after some layer; gives its folder."""
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

    def write(layer: int, width: int) -> Path:
        metadata = SAEMetadata(hook_name=f"blocks.{layer}.hook_resid_post")
        folder = tmp_path / f"sae-{layer}-{width}"
        StandardSAE(StandardSAEConfig(d_in=width, d_sae=32, metadata=metadata)).save_model(folder)
        return folder

    return write


@pytest.fixture
def series(tiny_model: Path, tmp_path: Path) -> Path:
    """A series of the tiny model and two with other weights."""
    tables = [f"property = 'dose'\nbase = '{tiny_model}'"]
    for level in (1, 2):
        folder = shutil.copytree(tiny_model, tmp_path / f"model-{level}")
        weights = load_file(folder / "model.safetensors")
        save_file({name: one * (1 + level) for name, one in weights.items()}, folder / "model.safetensors")
        tables.append(f"[[checkpoint]]\npath = '{folder}'\nlevel = {level}")
    file = tmp_path / "series.toml"
    file.write_text("\n".join(tables))
    return file


@pytest.mark.parametrize("layer", [LAYERS, 99])
def test_a_layer_that_the_model_lacks(
    refused: Any, series: Path, data_file: Path, sae: Any, layer: int
) -> None:
    expected = f"layer {layer}; tiny has the layers 0 to 1"
    said = refused("capture", "--ckpts", series, "--layers", f"1,{layer}", "--data", data_file)
    assert f"--layers: {expected}" in said
    for model in (("--ckpt", "MODEL"), ("--ckpts", series)):
        said = refused("sae", "train", *model, "--layer", layer, "--data", data_file)
        assert f"--layer: {expected}" in said
    folder = sae(layer, WIDTH)
    assert f"--sae {folder}: {expected}" in refused("serve", "--ckpt", "MODEL", "--sae", folder)


@pytest.mark.parametrize("width", [WIDTH - 1, 3 * WIDTH])
def test_an_sae_and_vectors_of_another_width(refused: Any, tmp_path: Path, sae: Any, width: int) -> None:
    folder, file = sae(1, width), tmp_path / "vectors.safetensors"
    save_file({"fits": torch.ones(WIDTH), "off": torch.ones(width)}, file)
    says = f"width {width}; the residual stream of tiny has the width {WIDTH}: it was made for another model"
    assert f"--sae {folder}: {says}" in refused("serve", "--ckpt", "MODEL", "--sae", folder)
    said = refused("serve", "--ckpt", "MODEL", "--vectors", file)
    assert f'--vectors {file}: vector "off": {says}' in said


def test_what_fits_is_taken(run: CommandLine, tiny_model: Path, tmp_path: Path, sae: Any) -> None:
    started: list[Any] = []

    def serve(launch: Any, **_: Any) -> None:
        started.append(launch)

    run.monkeypatch.setattr("morfi.serve.http.server.run_server", serve)
    file = tmp_path / "vectors.safetensors"
    save_file({"fits": torch.ones(WIDTH)}, file)
    ended = run("serve", "--ckpt", tiny_model, "--sae", sae(LAYERS - 1, WIDTH), "--vectors", file)
    assert started, ended.err
    assert (list(started[0].vectors), len(started[0].saes)) == (["fits"], 1)
