"""Shared: the tiny random models that adapters are made on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_adapters import CONFIGS
from transformers import AutoModelForCausalLM


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a random model by its name in CONFIGS, made once; only to be read."""
    root, made = tmp_path_factory.mktemp("bases"), {}

    def base(name: str) -> Path:
        if name not in made:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(CONFIGS[name])
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
            model.save_pretrained(root / name)
            made[name] = root / name
        return made[name]

    return base
