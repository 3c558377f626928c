"""How fast a machine works: what it was measured to do, or what a GPU's maker says, times an efficiency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GB = 10**9
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates of a machine; FLOP/s are useful ones, of the products with weights alone.

    `answer_bytes_per_s` is the memory bandwidth at which each step reads the weights, for at most `at_once`
    requests. `start_s` is an engine's start on a model of `start_bytes`; what a larger one has more is read
    at `read_bytes_per_s`. `swap_bytes_per_s` are bytes of the whole model; `planning/swaps.py` says
    what an adapter takes in place on a GPU.
    """

    prompt_flops: float
    answer_flops: float
    answer_bytes_per_s: float
    at_once: int
    answer_s: float  # judging and storing
    steered_s: float  # more, of a steered answer
    row_s: float  # of a captured row
    start_s: float
    start_bytes: float
    read_bytes_per_s: float
    swap_bytes_per_s: float
    train_flops: float
    train_part_s: float  # of a micro-batch, whatever its size, for each layer
    training_s: float  # of a training, before its first step
    dev_flops: float
    dev_pass_s: float  # of a forward pass, for each layer
    sae_flops: float
    sae_step_s: float
    encode_flops: float
    write_bytes_per_s: float
    stage_s: float  # of a stage, before and after its work


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU by its data sheet: dense bfloat16 FLOP/s, bytes/s and bytes of its memory.

    `link` is that of its PCI Express in one direction, in bytes/s.
    """

    name: str
    flops: float
    bandwidth: float
    memory: int
    link: float


# NVIDIA's data sheets: "H100 Tensor Core GPU" (SXM), "H200 Tensor Core GPU" (SXM), "A100 Tensor Core GPU"
# (SXM, 80 and 40 GB), "L40S", and "Ada GPU Architecture" (RTX 4090, products in bfloat16 summed in float32).
# Where a sheet gives a figure "with sparsity", half of it.
GPUS: Mapping[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", 989e12, 3.35e12, 80 * GB, 64 * GB),
        Gpu("h200", 989e12, 4.8e12, 141 * GB, 64 * GB),
        Gpu("a100-80g", 312e12, 2.039e12, 80 * GB, 32 * GB),
        Gpu("a100-40g", 312e12, 1.555e12, 40 * GB, 32 * GB),
        Gpu("l40s", 362e12, 0.864e12, 48 * GB, 32 * GB),
        Gpu("rtx-4090", 165.2e12, 1.008e12, 24 * GIB, 32 * GB),
    )
}

# Shares of a data sheet's figure, ours: none is measured. They lie below what is published of the best.
PROMPT_SHARE = 0.4
BANDWIDTH_SHARE = 0.5
TRAIN_SHARE = 0.25
SAE_SHARE = 0.25
ENCODE_SHARE = 0.5
LINK_SHARE = 0.5
CPU_AT_ONCE = 256  # requests of a step, as vLLM has it
_GPU_AT_ONCE = 1024
_GPU_START_S = 90.0  # compiling and recording graphs included
READ = 1.5 * GB  # bytes/s of files, unless they are measured
_LAUNCH_S = 1e-3  # of a decoder layer that is run from Python, forward
_WRITE = 0.5 * GB


def gpu_rates(gpu: Gpu, n: int = 1) -> Rates:
    """The rates of `n` such GPUs: serving is spread over them, at 0.8 of their sum; the rest runs on one."""
    together = n if n == 1 else 0.8 * n
    return Rates(
        prompt_flops=PROMPT_SHARE * gpu.flops * together,
        answer_flops=PROMPT_SHARE * gpu.flops * together,
        answer_bytes_per_s=BANDWIDTH_SHARE * gpu.bandwidth * together,
        at_once=_GPU_AT_ONCE,
        answer_s=2e-4,
        steered_s=2e-4,
        row_s=2e-6,
        start_s=_GPU_START_S,
        start_bytes=0.0,
        read_bytes_per_s=READ,
        swap_bytes_per_s=READ,
        train_flops=TRAIN_SHARE * gpu.flops,
        train_part_s=3 * _LAUNCH_S,
        training_s=2.0,
        dev_flops=TRAIN_SHARE * gpu.flops,
        dev_pass_s=_LAUNCH_S,
        sae_flops=SAE_SHARE * gpu.flops,
        sae_step_s=8e-3,
        encode_flops=ENCODE_SHARE * gpu.flops,
        write_bytes_per_s=_WRITE,
        stage_s=5.0,
    )


def gpu_called(device: str) -> Gpu | None:
    """The GPU that a device's name, as CUDA gives it, means; None where it is none of them."""
    words = device.lower().replace("-", " ").replace("geforce", "")
    for name, gpu in GPUS.items():
        model, _, size = name.replace("rtx ", "").partition("-")
        if model == "a100":
            if "a100" in words and (size.removesuffix("g") + "gb") in words.replace(" ", ""):
                return gpu
        elif name.replace("-", " ") in words:
            return gpu
    return None
