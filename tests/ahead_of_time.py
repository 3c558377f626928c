"""Kernels compiled for a GPU that is not there, as a script in bench/ does it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def load_bench() -> ModuleType:
    """The script, as a module."""
    path = Path(__file__).parents[1] / "bench" / "trends_resources.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


bench = load_bench()


def compiled(launch: Callable[[], Any], capability: int) -> Any:
    """What Triton compiles for sm_`capability` when `launch` starts one kernel on tensors of a CPU."""
    (made,) = bench.launched(capability, launch)
    return made
