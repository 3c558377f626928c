"""The machine's device: whether there is a GPU, what it is called, and the dtype it serves fastest."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def serving_dtype(model_dtype: str) -> str:
    """The dtype in which this machine serves a model saved as `model_dtype`.

    A CPU without bfloat16 instructions would emulate them, slower than float32, so there float32 is served:
    the weights keep their values.
    """
    return model_dtype if is_gpu() or cpu_has_bfloat16() else "float32"


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively (AVX-512 BF16, AMX or the Arm extension)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    words = set(flags.split())
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def is_gpu() -> bool:
    """Whether torch sees a CUDA device; asks the driver, so that this process can still be forked."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    return torch.cuda.is_available()


def available_memory() -> int | None:
    """The bytes of main memory that this machine can still give; None where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None


def free_on(device: torch.device) -> int:
    """The bytes that `device` can still give; none where it does not say."""
    import torch

    if device.type == "cpu":
        return available_memory() or 0
    return int(torch.get_device_module(device).mem_get_info(device)[0])


def free_memory() -> None:
    """Gives the device and the system the memory back that this process no longer uses."""
    import ctypes
    import gc

    import torch

    gc.collect()
    if is_gpu():
        torch.cuda.empty_cache()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # glibc
        trim(0)


def device_name() -> str:
    """The device's marketing name with its core or memory size, for the run's record."""
    import torch

    if is_gpu():
        properties = torch.cuda.get_device_properties(0)
        return f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB) x {torch.cuda.device_count()}"
    model = ""
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model or 'CPU'} x {len(os.sched_getaffinity(0))}"
