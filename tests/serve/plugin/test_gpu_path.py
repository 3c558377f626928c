"""A GPU's engine, run on a CPU: it equals the CPU's own, and a missing operation is found out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

CHILD = Path(__file__).parent / "gpu_path_child.py"
MP = {"distributed_executor_backend": "mp"}
# What is run in each process: runner V2 with Triton interpreted, the same with workers, and runner V1.
PLANS: dict[str, dict[str, dict[str, Any]]] = {
    "v2": {
        "v2 synchronous": {"asynchronous": False, "tables": True, "captured": True, "overrides": {}},
        "v2 queue": {"asynchronous": True, "tables": True, "captured": False, "overrides": {}},
    },
    "processes": {
        "v2 processes": {"asynchronous": True, "tables": True, "captured": False, "overrides": MP},
    },
    "v1": {
        "cpu": {"asynchronous": False, "tables": False, "captured": False, "overrides": {}},
        "v1 synchronous": {"asynchronous": False, "tables": True, "captured": False, "overrides": {}},
    },
}
BROKEN = [name for plan in PLANS.values() for name, one in plan.items() if one["tables"]]


@pytest.fixture(scope="module")
def answers(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Callable[[str], Path], starts_vllm: None
) -> dict[str, dict[str, Any]]:
    """The answers of each engine, by its name; the processes run at the same time."""
    root = tmp_path_factory.mktemp("gpu-path")
    model = tiny_base("llama")
    interpreted = {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}
    children = {
        name: subprocess.Popen(
            [sys.executable, "-P", str(CHILD), str(model), str(root / name), json.dumps(list(plan.values()))],
            env=os.environ | {"MORFI_CACHE": str(root / "cache")} | (interpreted if name != "v1" else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, plan in PLANS.items()
    }
    found: dict[str, Any] = {}
    for name, child in children.items():
        out, err = child.communicate(timeout=400)
        assert child.returncode == 0, err[-3000:]
        found |= dict(zip(PLANS[name], json.loads(out.splitlines()[-1]), strict=True))
    return found


@pytest.mark.parametrize("name", BROKEN)
def test_tables_and_interpreted_kernels_equal_the_cpu(answers: dict[str, dict[str, Any]], name: str) -> None:
    expected, found = answers["cpu"], answers[name]
    assert found["plain"] == expected["plain"]
    assert found["right"]["tokens"] == expected["right"]["tokens"] != expected["plain"]["tokens"]
    assert found["right"]["n_tokens"] == expected["right"]["n_tokens"] == [[3], [6], [8]]
    for mine, its in zip(found["right"]["rows"], expected["right"]["rows"], strict=True):
        for layer, other in zip(mine, its, strict=True):
            torch.testing.assert_close(torch.tensor(layer), torch.tensor(other), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", BROKEN)
def test_no_answer_leaves_a_step_whose_operation_did_not_run(
    answers: dict[str, dict[str, Any]], name: str
) -> None:
    found = answers[name]["broken"]
    assert found["ended"] == 0
    assert "layer 0 was to be steered or captured, but its operation did not run" in found["error"]
    assert "error" in answers[name]["after"], "what is broken stays so"


def test_a_closed_engine_leaves_nothing_that_the_operation_would_work_with(
    answers: dict[str, dict[str, Any]],
) -> None:
    assert not any(found["left"] for found in answers.values())
