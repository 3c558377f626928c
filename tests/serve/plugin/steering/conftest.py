"""One engine of each kind for all tests of this folder, beside the same model in transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hooked_model import ON_CPU, ON_GPU, Served, serving


@pytest.fixture(scope="package", params=[*ON_CPU, ON_GPU])
def served(
    request: pytest.FixtureRequest, tiny_base: Callable[[str], Path], starts_vllm: None
) -> Iterator[Served]:
    family, ways = request.param
    with serving(tiny_base(family), ways) as served:
        yield served
