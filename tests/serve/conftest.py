"""The real model, converted once into the user's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from morfi.cache import Cache
from morfi.checkpoints.embedded import embedded_model


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    return embedded_model(Cache(), None)
