"""What each worker of vLLM sets for a CPU before it builds the model, with morfi's plugin and without it."""

from __future__ import annotations

from vllm.platforms import current_platform

from morfi.serve import settings as engine_settings

if current_platform.is_cpu():
    import morfi.serve.cpu_norm  # noqa: F401 - registers what the settings name

    engine_settings.keep_freed_memory()


class WorkerExtension:
    """vLLM's `worker_extension_cls` of an engine without the plugin: it adds nothing."""
