"""Resources that Triton kernels take of a GPU, which need not be there: read from compiled binaries."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Bytes of shared memory that a program may have (CUDA C++ Programming Guide, Technical Specifications).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
_USED = re.compile(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)")


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources of one program."""

    registers: int  # per thread
    spilled: int  # bytes per thread, of its stack and of local memory
    shared: int  # bytes


def compiled_resources(
    kernel: Any, types: Sequence[str], constants: Mapping[str, int | str], capability: int, **options: int
) -> Resources:
    """Compiles `kernel` for sm_`capability`; `types` are those of its arguments before the constants.

    A type is like "*bf16", "fp32" or "i32"; pointers, and what has the type "i32:16", are taken to be
    multiples of 16, as Triton finds them to be nearly always. "i32:1" is the number 1, compiled in.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names[: len(types)]
    ones = {name: 1 for name, kind in zip(names, types, strict=True) if kind.endswith(":1")}
    signature = {name: kind.partition(":")[0] for name, kind in zip(names, types, strict=True)}
    signature |= dict.fromkeys(ones, "constexpr")
    signature |= dict.fromkeys(kernel.arg_names[len(types) :], "constexpr")
    aligned = [place for place, kind in enumerate(types) if kind.startswith("*") or kind.endswith(":16")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=dict(constants) | ones,
        attrs={(place,): [["tt.divisibility", 16]] for place in aligned},
    )
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    used = _USED.search(_dump(made.asm["cubin"]))
    assert used is not None
    registers, stack, local = map(int, used.groups())
    return Resources(registers, stack + local, made.metadata.shared)


def encode_resources(
    dtype: str, capability: int, *, gated: bool = False, limits: bool = False, dense: bool = False
) -> Resources:
    """Resources of `encode_kernel` for inputs that are "bf16", "fp16" or "fp32"."""
    import torch

    from morfi.kernels.encode_triton import block_of, encode_kernel

    block = block_of(torch.float32 if dtype == "fp32" else torch.bfloat16)
    options = {name: int(block.pop(name)) for name in ("num_warps", "num_stages")}
    constants = {"IS_GATED": gated, "HAS_LIMITS": limits, "IS_DENSE": dense}
    types = [f"*{dtype}"] * 2 + ["*fp32"] * 5 + ["*i32"] * 2 + ["*fp32"] + ["i32"] * 3
    types += ["i32:16"] * 4
    return compiled_resources(encode_kernel, types, constants | block, capability, **options)


def sums_resources(capability: int) -> Resources:
    """Resources of `resampled_sums_kernel`."""
    from morfi.kernels.trend_triton import BLOCK, ROWS, resampled_sums_kernel

    types = ("*i64", "*i64", "*fp32", "*u8", "*fp32", "i32", "i32:16", "i32:16")
    return compiled_resources(resampled_sums_kernel, types, {"ROWS": ROWS, "BLOCK": BLOCK}, capability)


def trend_resources(
    capability: int, n_conditions: int, *, has_table: bool, is_resampled: bool = True
) -> Resources:
    """Resources of `trend_kernel`, for the means of resamples or for the full sample's alone."""
    from morfi.kernels.trend_triton import BLOCK, trend_kernel

    types = ["*fp32"] * 3 + ["*i32", "*fp32"] + ["*i32"] * 3 + ["*fp32"] + ["i32"] * 3 + ["fp32"] * 7
    constants = {"C": n_conditions, "HAS_TABLE": has_table, "BLOCK": BLOCK if is_resampled else 1}
    if not is_resampled:
        types[10] = "i32:1"
    return compiled_resources(trend_kernel, types, constants, capability)


def page_resources(capability: int, n_conditions: int) -> Resources:
    """Resources of `page_kernel`."""
    from morfi.kernels.trend_triton import BLOCK, page_kernel

    types = ["*fp32"] * 4 + ["i32"]
    return compiled_resources(page_kernel, types, {"C": n_conditions, "BLOCK": BLOCK}, capability)


def _dump(cubin: bytes) -> str:
    """The report of the cuobjdump that comes with Triton on a binary."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "kernel.cubin"
        binary.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(binary)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        return done.stdout
