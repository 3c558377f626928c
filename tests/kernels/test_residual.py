"""The residual kernel equals its reference in Triton's interpreter, and compiles for sm_80 and sm_90."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from morfi.kernels.residual import Numbers, residual_kernel


@pytest.mark.long
def test_the_kernel_equals_its_reference_in_the_interpreter() -> None:
    script = Path(__file__).with_name("interpreted_residual.py")
    done = subprocess.run(
        [sys.executable, "-P", str(script)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert len(found["changed"]) == 18
    assert min(found["changed"]) > 0
    assert found["left"]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(("d_model", "has_residual"), [(576, True), (4096, True), (768, False)])
def test_the_kernel_compiles_ahead_of_time(
    capability: int, dtype: str, d_model: int, *, has_residual: bool
) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {
        "D": d_model,
        "BLOCK": triton.next_power_of_2(d_model),
        "HAS_RESIDUAL": has_residual,
        "N_ENTRIES": 8,
        "N_CAPTURED": 2,
        "N_NUMBERS": len(Numbers._fields),
    }
    signature = dict.fromkeys(residual_kernel.arg_names, "*i32")
    signature |= dict.fromkeys(("hidden", "residual"), f"*{dtype}")
    signature |= dict.fromkeys(("vectors", "encoders", "numbers", "strengths", "captured"), "*fp32")
    signature |= dict.fromkeys(("layer", "hidden_stride", "residual_stride", "n_rows"), "i32")
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=residual_kernel, signature=signature, constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    assert f".target sm_{capability}" in made.asm["ptx"]
    assert made.asm["cubin"]
