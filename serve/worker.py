"""Additions to vLLM's workers; each of their processes imports this before it builds the model."""

from __future__ import annotations

import morfi.serve.plain_worker  # noqa: F401 - what it sets for a CPU
from morfi.serve.plugin import hooks
from morfi.serve.weights.loaded import check_what_is_loaded
from morfi.serve.weights.swap import WeightSwapping

hooks.register()
check_what_is_loaded()


class WorkerExtension(WeightSwapping):
    """vLLM's `worker_extension_cls`."""
