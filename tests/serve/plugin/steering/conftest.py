"""One engine of each architecture for all tests of this folder, beside the same model in transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hooked_model import Served, serving

# vLLM's attention on CPUs approximates the soft cap's tanh, which changes residuals by some 1e-3.
FAMILIES = {"llama": "llama", "mistral": "mistral", "gemma2": "gemma2 without a cap"}


@pytest.fixture(scope="package", params=FAMILIES)
def served(
    request: pytest.FixtureRequest, tiny_base: Callable[[str], Path], starts_vllm: None
) -> Iterator[Served]:
    with serving(tiny_base(FAMILIES[request.param])) as served:
        yield served
