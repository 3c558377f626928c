"""The machine that an experiment is planned for: this one, or a GPU by its name."""

from __future__ import annotations

import shutil
from pathlib import Path

from morfi.device import available_memory, cpu_has_bfloat16, device_name, is_gpu
from morfi.errors import InputError, nearest
from morfi.planning.calibration import calibrated
from morfi.planning.fit import Machine
from morfi.planning.rates import (
    BANDWIDTH_SHARE,
    ENCODE_SHARE,
    GPUS,
    LINK_SHARE,
    PROMPT_SHARE,
    SAE_SHARE,
    TRAIN_SHARE,
    Gpu,
    gpu_called,
    gpu_rates,
)


def gpu_machine(name: str, n: int = 1) -> Machine:
    """`n` GPUs called `name`; raises InputError for a name that is none."""
    if name not in GPUS:
        raise InputError(f'--gpu is "{name}"; expected one of {", ".join(GPUS)}.{nearest(name, GPUS)}')
    gpu = GPUS[name]
    return Machine(f"{name} x {n}", gpu_rates(gpu, n), gpu, is_gpu=True, notes=_published(gpu, n))


def this_machine(folder: Path, n: int = 1) -> Machine:
    """This machine, by what it was calibrated to do, else by its GPU's data sheet; files go to `folder`."""
    name, has_gpu = device_name(), is_gpu()
    gpu = gpu_called(name) if has_gpu else None
    found = calibrated(name)
    rates = None if found is None else found.rates
    if found is not None:
        notes: tuple[str, ...] = (
            f"rates were measured on {found.model}, {found.at[:10]}; those of other models are scaled by "
            "operations and bytes",
            *found.changed,
        )
    elif gpu is not None:
        rates, notes = gpu_rates(gpu, n), _published(gpu, n)
    else:
        notes = ("how fast this machine is, is not known: `morfi plan --calibrate` measures it",)
    return Machine(
        name,
        rates,
        gpu,
        is_gpu=has_gpu,
        dtype="bfloat16" if has_gpu or cpu_has_bfloat16() else "float32",
        host=available_memory(),
        disk=shutil.disk_usage(folder).free,
        notes=notes,
        is_measured=found is not None,
    )


def _published(gpu: Gpu, n: int) -> tuple[str, ...]:
    shares = {
        "prompts": PROMPT_SHARE,
        "training": TRAIN_SHARE,
        "an SAE": SAE_SHARE,
        "encoding": ENCODE_SHARE,
        "answers and swaps (of the bandwidth)": BANDWIDTH_SHARE,
        "PCI Express": LINK_SHARE,
    }
    used = ", ".join(f"{100 * share:.0f} % for {what}" for what, share in shares.items())
    found = (
        f"nothing was measured: {gpu.name} has {gpu.flops / 1e12:g} TFLOP/s in bfloat16 and "
        f"{gpu.bandwidth / 1e12:g} TB/s by its data sheet, and is taken to reach {used}; "
        "`morfi plan --calibrate` there measures it"
    )
    together = f"{n} GPUs serve 0.8 x {n} times as fast as one; the rest runs on one"
    return (found, together) if n > 1 else (found,)
