"""Resources that the Triton kernels of trends take, and their roofline on paper: no GPU is needed or timed.

Compiles every kernel for sm_80 and sm_90 and reads registers, spills and shared memory from the binary;
counts operations and bytes of `find_trends` at the sizes of an 8B model. Writes
bench/results/trends_gpu_paper.md. `bench/trends_gpu.py` is what measures.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from morfi.kernels import compaction, encode_fused, encode_library, trend_triton
from morfi.kernels.encode_fused import block_of
from morfi.kernels.encoder import ACTIVATIONS, Encoder, Nonzeros
from morfi.kernels.null import trend_null
from morfi.latents.trend_inputs import ON_GPU

RESULTS = Path(__file__).resolve().parent / "results" / "trends_gpu_paper.md"
REGISTERS = 65536  # of a multiprocessor
D_MODEL, N, K, B = 4096, 5000, 7, 1000
D_SAES = (32_768, 131_072)
L0 = 50  # latents that fire for a question, as the releases say of theirs
N_LAUNCHES = 40  # of small kernels after each tile, about: sort, search, gather and sums
LAUNCH_US = 5  # to queue one from Python
# Bytes of shared memory that a program may have (CUDA C++ Programming Guide, Technical Specifications).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
FUSED = ("relu", "gated", "topk", "dense")  # JumpReLU's is ReLU's
COMPACTED = ("relu", "gated", "topk")
N_LATENTS = 256  # of what is compiled; neither that nor the number of questions is a constant
_USED = re.compile(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)")


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources of one program."""

    registers: int  # per thread
    spilled: int  # bytes per thread, of its stack and of local memory
    shared: int  # bytes
    n_warps: int


@dataclass(frozen=True, slots=True)
class _Target:
    """A GPU that Triton takes to be there; nothing can run on it."""

    capability: int

    def get_current_device(self) -> int:
        return -self.capability  # under which Triton keeps what it compiled

    def get_current_stream(self, device: int) -> int:
        return device

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


def launched(capability: int, call: Callable[[], Any]) -> list[Any]:
    """What Triton compiles for sm_`capability` when `call` launches kernels on a CPU's tensors; nothing runs.

    Triton itself finds types, constants, hints and options in the arguments, as it does on a GPU.
    """
    made: list[Any] = []
    run: Any = JITFunction.run

    def compiled(kernel: Any, *args: Any, warmup: bool, **options: Any) -> None:
        made.append(run(kernel, *args, warmup=True, **options))

    kept: Any = JITFunction
    driver.set_active(_Target(capability))
    kept.run = compiled
    try:
        call()
    finally:
        kept.run = run
        if torch.cuda.is_available():
            driver.reset_active()
    return made


def _resources(capability: int, call: Callable[[], Any]) -> Resources:
    """Resources of the one kernel that `call` launches."""
    (made,) = launched(capability, call)
    used = _USED.search(_dump(made.asm["cubin"]))
    assert used is not None
    registers, stack, local = map(int, used.groups())
    return Resources(registers, stack + local, made.metadata.shared, made.metadata.num_warps)


def encode_resources(kind: str, dtype: torch.dtype, way: str, capability: int) -> Resources:
    """Resources of a way's kernel for an activation, or, of the fused way, of "dense" pre-activations."""
    ones = torch.ones(N_LATENTS)
    settings: dict[str, dict[str, Any]] = {
        "jumprelu": {"threshold": ones},
        "gated": {"r_mag": ones, "b_mag": ones},
        "topk": {"k": 2},
    }
    activation = kind if kind in ACTIVATIONS else "relu"
    encoder = Encoder(torch.ones(64, N_LATENTS, dtype=dtype), ones, activation, **settings.get(kind, {}))
    x, latents = torch.ones(48, 64, dtype=dtype), slice(0, N_LATENTS)
    limits = torch.ones(48) if kind == "topk" else None
    module = encode_fused if way == "fused" else encode_library
    return _resources(
        capability,
        lambda: (
            module.encode_dense(x, encoder, latents)
            if kind == "dense"
            else compaction.start_tile(module.launch, x, encoder, latents, limits)
        ),
    )


def sums_resources(capability: int) -> Resources:
    """Resources of `resampled_sums_kernel`."""
    found = Nonzeros(torch.zeros(65, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    counts = torch.zeros(48, B, dtype=torch.uint8)
    return _resources(capability, lambda: trend_triton.resampled_sums(found, counts))


def trend_resources(capability: int, n_conditions: int, *, is_resampled: bool = True) -> Resources:
    """Resources of `trend_kernel`, for the means of resamples or for the full sample's alone."""
    means = torch.zeros(n_conditions, 64, 1 + B if is_resampled else 1)
    null = trend_null(tuple(range(n_conditions)))
    return _resources(capability, lambda: trend_triton.reduce_trends(means, null, 0.05))


def page_resources(capability: int, n_conditions: int) -> Resources:
    """Resources of `page_kernel`."""
    values, midranks = torch.zeros(n_conditions, N), torch.arange(float(n_conditions))
    return _resources(capability, lambda: trend_triton.page_blocks(values, midranks))


def _dump(cubin: bytes) -> str:
    """The report of the cuobjdump that comes with Triton on a binary."""
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(binary)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout


@dataclass(frozen=True, slots=True)
class Gpu:
    """Peaks of a data sheet, dense."""

    name: str
    capability: int
    bf16: float  # operations per second
    tf32: float
    bandwidth: float  # bytes per second
    n_multiprocessors: int


GPUS = (
    Gpu("A100 SXM 80 GB", 80, 312e12, 156e12, 2.04e12, 108),
    Gpu("H100 SXM", 90, 989e12, 495e12, 3.35e12, 132),
)


def resource_rows() -> list[str]:
    """A line of the table for each kernel and architecture."""
    lines = []
    for gpu in GPUS:
        found: dict[str, Resources] = {}
        for dtype, kind in itertools.product((torch.bfloat16, torch.float16, torch.float32), FUSED):
            name = f"fused, {str(dtype).partition('.')[2]}, {kind}"
            found[name] = encode_resources(kind, dtype, "fused", gpu.capability)
        for kind in COMPACTED:
            found[f"compacted, {kind}"] = encode_resources(kind, torch.float32, "library", gpu.capability)
        found["resampled sums"] = sums_resources(gpu.capability)
        for n in (3, 7, 10, 21):
            found[f"trend, {n} conditions"] = trend_resources(gpu.capability, n)
            found[f"Page, {n} conditions"] = page_resources(gpu.capability, n)
        for name, used in found.items():
            limit = SHARED_LIMIT[gpu.capability]
            lines.append(
                f"| {name} | sm_{gpu.capability} | {used.n_warps} | {used.registers} | {used.spilled} | "
                f"{used.shared / 1024:.0f} of {limit // 1024} | {resident(used, limit)} |"
            )
    return lines


def resident(used: Resources, shared_limit: int) -> int:
    """Programs that a multiprocessor holds at once, by registers (given in eights), shared memory, warps."""
    by_registers = REGISTERS // (32 * used.n_warps * (-(-used.registers // 8) * 8))
    by_shared = (shared_limit + 1024) // (used.shared + 1024)  # a kilobyte is kept for each
    return min(by_registers, by_shared, 64 // used.n_warps, 32)


def encode_counts(d_sae: int) -> dict[str, float]:
    """Operations, bytes and programs of encoding all conditions in bf16."""
    block = block_of(torch.bfloat16)
    n, t = int(block["BLOCK_N"]), int(block["BLOCK_T"])
    down, across = triton.cdiv(N, n), triton.cdiv(d_sae, t)
    return {
        "operations": 2.0 * N * D_MODEL * d_sae * K,
        "padded": 2.0 * down * n * D_MODEL * across * t * K,
        "bytes": K * (2.0 * D_MODEL * (d_sae + N) + 8.0 * N * L0),
        "cache": K * 2.0 * D_MODEL * (n + t) * down * across,
        "programs": float(down * across),
    }


def bound_rows() -> list[str]:
    """A line of the roofline for each size and GPU."""
    lines = []
    for d_sae in D_SAES:
        counts = encode_counts(d_sae)
        kept = float(N * L0 * K)
        for gpu in GPUS:
            encode = counts["operations"] / gpu.bf16
            # Radix sort: 4 passes of 8 bits read and write an int32 key and an int64 place.
            ordering = kept * (4 * 2 * 12 + 40) / gpu.bandwidth
            # As if every latent were resampled, and the counts came from memory each time.
            sums, means = kept * B / gpu.bandwidth, 4 * 4.0 * K * d_sae * B / gpu.bandwidth
            workspace = 2 * 4.0 * N * d_sae * K / gpu.bandwidth
            tile = encode / K / triton.cdiv(d_sae, ON_GPU.latents)
            lines.append(
                f"| {d_sae:,} | {gpu.name} | {counts['operations'] / 1e12:.1f} | {1e3 * encode:.1f} | "
                f"{1e3 * counts['bytes'] / gpu.bandwidth:.1f} | {1e3 * ordering:.2f} | {1e3 * sums:.1f} | "
                f"{1e3 * means:.1f} | {100 * workspace / encode:.0f} % | {1e3 * tile:.1f} |"
            )
    return lines


def cache_rows() -> list[str]:
    """How fast the second level cache must be to keep the product fed, and how full the waves are."""
    lines = []
    for d_sae in D_SAES:
        counts = encode_counts(d_sae)
        for gpu in GPUS:
            encode = counts["operations"] / gpu.bf16
            waves = counts["programs"] / gpu.n_multiprocessors
            full = waves / -(-counts["programs"] // gpu.n_multiprocessors)
            lines.append(
                f"| {d_sae:,} | {gpu.name} | {counts['cache'] / encode / 1e12:.1f} | {100 * full:.1f} % | "
                f"{100 * counts['operations'] / counts['padded']:.1f} % |"
            )
    return lines


def report() -> str:
    """All tables as Markdown."""
    return (
        "\n".join(
            [
                "# Finding trends on a GPU, on paper",
                "",
                "**Nothing here was timed**: kernels were compiled, and bounds computed. "
                "`bench/trends_gpu.py` measures where there is a GPU ([an H200](trends_gpu.md)).",
                "",
                f"d_model {D_MODEL:,}, {N:,} questions, {K} conditions, {B:,} resamples, bf16, {L0} latents "
                "fire for a question. Times are those of data-sheet peaks, so lower bounds.",
                "",
                "## Roofline",
                "",
                "| d_sae | GPU | encode TFLOP | encode ms | its bytes ms | ordering ms | sums ms, at most | "
                "means ms, at most | cuBLAS to a workspace costs | a tile ms |",
                "|---|---|---|---|---|---|---|---|---|---|",
                *bound_rows(),
                "",
                "Encode: the products of all conditions; its bytes are weights, inputs and what is kept, "
                "once for each condition, so it is bound by arithmetic. Ordering: the radix sort of what "
                "was kept, and its gather. Sums and means: as if every latent were resampled with all "
                "counts read from memory; in truth only those with a trend are, and the counts stay in the "
                "L2 cache. The workspace is the other way's: cuBLAS writes float32 pre-activations, a second "
                "kernel reads them; the fused kernel must lose less against cuBLAS than that.",
                "",
                f"A tile is {ON_GPU.latents:,} latents of one condition. After it about {N_LAUNCHES} small "
                f"kernels are queued from Python, {N_LAUNCHES * LAUNCH_US / 1000:.2f} ms at {LAUNCH_US} us "
                "each: less than the next tile takes, which is started before (`start_tile`), so they cost "
                "the GPU only their own run.",
                "",
                "| d_sae | GPU | L2 TB/s that peak speed would ask for | waves full | work on real rows |",
                "|---|---|---|---|---|",
                *cache_rows(),
                "",
                "Each program reads its rows and columns from the L2 cache, which is why the block is as "
                "large as the registers allow: half of it would ask for a third more. On an H100 peak "
                "speed would ask for more than its cache is likely to give, so there that is the expected "
                "limit, before arithmetic; loads that several multiprocessors share (TMA multicast, as "
                "cuBLAS has) would be the remedy.",
                "",
                "## Compiled kernels",
                "",
                "| kernel | for | warps | registers | bytes spilled | shared KiB | programs at once |",
                "|---|---|---|---|---|---|---|",
                *resource_rows(),
                "",
                f"triton {triton.__version__}",
            ]
        )
        + "\n"
    )


if __name__ == "__main__":
    text = report()
    RESULTS.write_text(text)
    print(text)
