"""morfi: finds the directions that make a fine-tuned language model hallucinate, and steers them.

The names in `__all__` are what a program imports, from here; everything else may move. They are loaded when
they are first used, so that `import morfi` itself takes no time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morfi.checkpoints import Checkpoint, resolve
    from morfi.checkpoints.tokenizer import load_tokenizer
    from morfi.engine.directions import Direction, SaeLatents
    from morfi.engine.protocol import Completion, Sampling
    from morfi.engine.steering import Capture, Latent, Steering
    from morfi.errors import InputError, MorfiError
    from morfi.latents.sae import load_sae
    from morfi.latents.trends import find_trends
    from morfi.serve.engine import Engine, start_engine
    from morfi.store import Store

__version__ = "0.1.0"
__all__ = [
    "Capture",
    "Checkpoint",
    "Completion",
    "Direction",
    "Engine",
    "InputError",
    "Latent",
    "MorfiError",
    "SaeLatents",
    "Sampling",
    "Steering",
    "Store",
    "find_trends",
    "load_sae",
    "load_tokenizer",
    "resolve",
    "start_engine",
]
_PLACES = {
    "morfi.checkpoints": ("Checkpoint", "resolve"),
    "morfi.checkpoints.tokenizer": ("load_tokenizer",),
    "morfi.engine.directions": ("Direction", "SaeLatents"),
    "morfi.engine.protocol": ("Completion", "Sampling"),
    "morfi.engine.steering": ("Capture", "Latent", "Steering"),
    "morfi.errors": ("InputError", "MorfiError"),
    "morfi.latents.sae": ("load_sae",),
    "morfi.latents.trends": ("find_trends",),
    "morfi.serve.engine": ("Engine", "start_engine"),
    "morfi.store": ("Store",),
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'morfi' has no attribute {name!r}")
    found = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
