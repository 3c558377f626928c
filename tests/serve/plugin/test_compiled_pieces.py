"""The operation costs no compilation: pieces of a model that do the same in other layers are one graph."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

N_LAYERS = 5


@pytest.mark.slow
@pytest.mark.usefixtures("starts_vllm")
def test_a_model_is_compiled_in_three_pieces_however_many_layers_it_has(
    tmp_path: Path, tiny_base: Callable[[str], Path]
) -> None:
    folder = tiny_base("llama of five layers")
    done = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name("compiled_pieces.py")), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "VLLM_CACHE_ROOT": str(tmp_path / "cache"), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found == {"pieces": N_LAYERS + 1, "different": 3, "holding the operation": N_LAYERS}
