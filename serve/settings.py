"""How vLLM is started: what morfi sets for a CPU and for a GPU, and what a user may set instead."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from morfi.errors import InputError, nearest

_CHECKED = "config.json is what was checked"
_NAMED = "the checkpoint is the one that --ckpt names, as it is saved"
_GENERATES = "answers are what the model generates"
_SAMPLED = (
    "commands and requests say how answers are sampled, and answers end where the checkpoint's own "
    "generation_config.json says"
)

# Settings that would make the run something other than what its record says, that would do nothing, or that
# no record may hold, and what to use instead.
RESERVED = {
    "model": "use --ckpt",
    "tokenizer": "the checkpoint's own tokenizer is always used",
    "tokenizer_mode": "the checkpoint's own tokenizer is always used",
    "dtype": "use --dtype",
    "seed": "use --seed",
    "trust_remote_code": "code from a checkpoint is never run",
    "load_format": "only safetensors are loaded",
    "model_loader_extra_config": "only safetensors are loaded",
    "ignore_patterns": _NAMED,
    "model_weights": _NAMED,
    "revision": _NAMED,
    "code_revision": _NAMED,
    "tokenizer_revision": _NAMED,
    "config_format": _CHECKED,
    "hf_config_path": _CHECKED,
    "hf_overrides": _CHECKED,
    "model_class_overrides": _CHECKED,
    "quantization": "evaluate the checkpoint as it is saved",
    "quantization_config": "evaluate the checkpoint as it is saved",
    "runner": _GENERATES,
    "convert": _GENERATES,
    "pooler_config": _GENERATES,
    "logits_processors": _GENERATES,
    "skip_tokenizer_init": "morfi needs the tokenizer",
    "enable_lora": "adapters are merged before they are served",
    "generation_config": _SAMPLED,
    "override_generation_config": _SAMPLED,
    "served_model_name": "a server calls the model by the name of the checkpoint that --ckpt gives",
    "disable_log_stats": "morfi serve always keeps vLLM's statistics, for /metrics; nothing else shows them",
    "hf_token": "settings are stored with the run; give the token in the environment, as HF_TOKEN",
    "worker_cls": "vLLM's own is what steers and captures",
    "worker_extension_cls": "morfi's own swaps the weights of a live engine",
}

_OF_PYTHON = {"True": "true", "False": "false", "None": "null"}

# A setting of morfi's own: answers do not depend on which requests share a batch.
DETERMINISTIC = "deterministic"
CPU_BLOCK_SIZE = 32  # the smallest the CPU attention kernels take; vLLM's 128 never caches a 4-shot prefix
CPU_KV_CACHE_BYTES = 1 << 30
CPU_NORM = "morfi_cpu"  # registered by morfi.serve.cpu_norm
ONE_ENGINE = "reports and refusals of all engines but the first of a data-parallel group are lost"
# A seeded sample after a prompt that was computed in parts needs an offset of the random generator.
NO_OFFSET = "a seeded request whose prompt is computed in parts ends the engine there"
LARGE_GPU_BYTES = 70 << 30  # from here on vLLM takes this many sequences, but not on an A100
LARGE_GPU_SEQS = 1024
VLLM_GRAPH_SIZE = 512  # tokens of vLLM's largest CUDA graph unless it is told otherwise
CPU_BATCHED_TOKENS = 4096  # tokens of one step; what a whole prompt leaves of it stays unused


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """The engine settings in `pairs`, each "key=value"; a value that is not JSON is taken as text."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise InputError(f'--engine takes key=value, got "{pair}", for example --engine max_num_seqs=64')
        if key in RESERVED:
            raise InputError(f'engine setting "{key}" cannot be given: {RESERVED[key]}')
        if key in settings:
            raise InputError(f'engine setting "{key}" is given twice; give it once')
        try:
            settings[key] = json.loads(value, parse_constant=str)  # NaN and Infinity are not JSON
        except ValueError:
            if value in _OF_PYTHON:
                raise InputError(
                    f'engine setting "{key}" is {value}; values are JSON: {key}={_OF_PYTHON[value]}'
                ) from None
            settings[key] = value
    return settings


def check_known(overrides: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises InputError for an override that is no engine argument of the installed vLLM, nor morfi's own."""
    for key in overrides:
        if key not in known and key != DETERMINISTIC:
            hint = nearest(key, known)
            raise InputError(f'vLLM has no engine setting "{key}".{hint} See: vllm serve --help=all')


def check_sound(overrides: Mapping[str, Any], *, gpu: bool, seeded: bool) -> None:
    """Raises InputError for overrides with which answers are lost or the engine ends.

    `seeded` says whether requests may come that have a seed and are sampled.
    """
    for key, value in overrides.items():
        if key.startswith("data_parallel") and (key, value) != ("data_parallel_size", 1):
            raise InputError(
                f'engine setting "{key}" cannot be given: {ONE_ENGINE}; for more GPUs give '
                "tensor_parallel_size or pipeline_parallel_size, or start one morfi for each"
            )
    is_deterministic = overrides.get(DETERMINISTIC, False)
    if not isinstance(is_deterministic, bool):
        raise InputError(f'engine setting "{DETERMINISTIC}" is {is_deterministic!r}; expected true or false')
    if is_deterministic and not gpu:
        raise InputError(
            f'engine setting "{DETERMINISTIC}" cannot be given on a CPU, for which vLLM has no kernels whose '
            "sums do not depend on the batch; leave it out, and give --dtype float32 for smaller differences"
        )
    if gpu or not seeded:
        return
    if overrides.get("enable_chunked_prefill", False) is not False:
        raise InputError(
            f'engine setting "enable_chunked_prefill" cannot be given on a CPU: {NO_OFFSET}; leave it out'
        )


def engine_arguments(
    model_dir: Path,
    *,
    dtype: str,
    context: int,
    seed: int,
    gpu: bool,
    overrides: Mapping[str, Any],
    tokenizer: Path | None = None,
) -> dict[str, Any]:
    """The keyword arguments of `vllm.LLM` for `model_dir`; a request may have `context` tokens.

    `tokenizer` is the folder of its tokenizer, by default `model_dir` (see `tokenizer_folder`). Raises
    InputError for data parallelism.
    """
    check_sound(overrides, gpu=gpu, seeded=False)
    arguments: dict[str, Any] = {
        "model": str(model_dir),
        "tokenizer": str(tokenizer or model_dir),
        # Left to itself, vLLM prefers Mistral's own files to those that were checked.
        "tokenizer_mode": "hf",
        "config_format": "hf",
        "dtype": dtype,
        "seed": seed,
        "load_format": "safetensors",
        "trust_remote_code": False,
        "enable_prefix_caching": True,
        "max_model_len": context,
        "disable_log_stats": True,
        "worker_extension_cls": "morfi.serve.worker.WorkerExtension",
    }
    if gpu:
        arguments |= _for_gpu(overrides, _gpu_bytes())
    else:
        arguments |= {
            "block_size": CPU_BLOCK_SIZE,
            "enforce_eager": True,
            "kv_cache_memory_bytes": CPU_KV_CACHE_BYTES,
            "distributed_executor_backend": "uni",
            "enable_chunked_prefill": False,  # NO_OFFSET: torch has that on GPUs only
            "max_num_batched_tokens": max(context, CPU_BATCHED_TOKENS),
        }
        if overrides.get("enforce_eager", True) is True:
            # Compiled, vLLM fuses the norm itself.
            arguments["ir_op_priority"] = {"rms_norm": [CPU_NORM], "fused_add_rms_norm": [CPU_NORM]}
    return arguments | {key: value for key, value in overrides.items() if key != DETERMINISTIC}


def _for_gpu(overrides: Mapping[str, Any], n_bytes: int) -> dict[str, Any]:
    """Sequences in a step of a GPU of `n_bytes`, and CUDA graphs for all of them."""
    if n_bytes < LARGE_GPU_BYTES:
        return {}
    found: dict[str, Any] = {"max_num_seqs": LARGE_GPU_SEQS}
    own = {"enforce_eager", "compilation_config", "cudagraph_capture_sizes", "max_cudagraph_capture_size"}
    n_seqs = overrides.get("max_num_seqs", LARGE_GPU_SEQS)
    # What is no number vLLM refuses by name.
    if isinstance(n_seqs, int) and n_seqs > VLLM_GRAPH_SIZE and not own & set(overrides):
        found["max_cudagraph_capture_size"] = n_seqs
    return found


def _gpu_bytes() -> int:
    from vllm.platforms import current_platform  # asks the driver, which leaves processes free to fork

    return int(current_platform.get_device_total_memory())


def prepare_process(*, gpu: bool, verbose: bool, overrides: Mapping[str, Any] | None = None) -> None:
    """Sets what vLLM reads from the environment; must run before vllm is imported.

    Values that the user has set stay, but for what one of the `overrides` asks for.
    """
    if (overrides or {}).get(DETERMINISTIC, False):
        os.environ["VLLM_BATCH_INVARIANT"] = "1"
    defaults = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "INFO" if verbose else "ERROR",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "TOKENIZERS_PARALLELISM": "true",
    }
    if gpu:
        # A process that has asked torch for its GPU cannot be forked, and this one may have.
        defaults["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    else:
        defaults["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"  # or worker processes leave a core idle
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def keep_freed_memory() -> None:
    """Makes glibc keep freed blocks of up to 32 MiB instead of returning their pages to the system.

    Every layer allocates and frees its activations; giving the pages back and faulting them in again costs
    a CPU run about a tenth of its speed. What preloading another allocator would do, without restarting.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    mallopt = getattr(libc, "mallopt", None)  # musl has none
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 1 << 30)
