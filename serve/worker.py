"""Additions to vLLM's workers; each of their processes imports this before it builds the model."""

from __future__ import annotations

from vllm.platforms import current_platform

from morfi.serve import settings as engine_settings
from morfi.serve.plugin import hooks
from morfi.serve.weights.loaded import check_what_is_loaded
from morfi.serve.weights.swap import WeightSwapping

if current_platform.is_cpu():
    import morfi.serve.cpu_norm  # noqa: F401 - registers what the settings name

    engine_settings.keep_freed_memory()

hooks.register()
check_what_is_loaded()


class WorkerExtension(WeightSwapping):
    """vLLM's `worker_extension_cls`."""
