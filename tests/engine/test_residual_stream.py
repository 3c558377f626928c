"""What a checkpoint's configuration says of its residual stream, for every architecture that is looked at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from architectures import OTHERS, REQUIRED
from hypothesis import given
from hypothesis import strategies as st

from morfi.engine.decoder import layers_of
from morfi.engine.residual_stream import ResidualStream, stream_of
from morfi.errors import InputError


@pytest.mark.parametrize("architecture", [*REQUIRED, *OTHERS])
def test_layers_and_width_are_those_of_the_model(architecture: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family, settings = {**REQUIRED, **OTHERS}[architecture]
    config = AutoConfig.for_model(family, **settings)
    config.architectures = [architecture]
    config.save_pretrained(tmp_path)
    checkpoint: Any = SimpleNamespace(model_dir=tmp_path, name="it")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    try:
        n_layers = len(layers_of(model))
    except InputError:
        n_layers = None  # of a form that cannot be steered either
    found = stream_of(checkpoint)
    assert n_layers in (None, found.n_layers)
    assert found.d_model == model.get_output_embeddings().weight.shape[1]


@given(st.integers(1, 100), st.integers(0, 200), st.integers(1, 100), st.integers(1, 100))
def test_just_what_the_model_has_is_taken(n_layers: int, layer: int, d_model: int, width: int) -> None:
    stream = ResidualStream("it", n_layers, d_model)
    checks: list[tuple[Callable[[int, str], None], int, bool]] = [
        (stream.check_layer, layer, layer < n_layers),
        (stream.check_width, width, width == d_model),
    ]
    for check, number, fits in checks:
        if fits:
            check(number, "an SAE")
        else:
            with pytest.raises(InputError, match=rf"^an SAE: (layer|width) {number}; "):
                check(number, "an SAE")
    unknown = ResidualStream("it", None, None)
    unknown.check_layer(layer, "an SAE")
    unknown.check_width(width, "an SAE")
