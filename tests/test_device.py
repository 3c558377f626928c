from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from morfi import device
from morfi.device import cpu_has_bfloat16, device_name, serving_dtype

PLAIN = "flags\t\t: fpu sse avx2 avx512f avx512_bf16x not_bf16\nmodel name\t: bf8\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (PLAIN, False),
        ("", False),
        (PLAIN + "flags : avx512_bf16 sse\n", True),
        (PLAIN + "flags : amx_bf16\n", True),
        (PLAIN + "Features : fp asimd bf16\n", True),
    ],
)
def test_bfloat16_is_seen_as_a_whole_word_among_the_cpus_features(
    monkeypatch: pytest.MonkeyPatch, cpuinfo: str, expected: bool
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: cpuinfo)
    assert cpu_has_bfloat16() is expected


def test_a_system_that_does_not_tell_its_features_counts_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    assert cpu_has_bfloat16() is False


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("native", [True, False])
def test_the_models_dtype_is_served_but_on_a_cpu_that_would_emulate_it(
    monkeypatch: pytest.MonkeyPatch, dtype: str, gpu: bool, native: bool
) -> None:
    monkeypatch.setattr(device, "is_gpu", lambda: gpu)
    monkeypatch.setattr(device, "cpu_has_bfloat16", lambda: native)
    assert serving_dtype(dtype) == (dtype if gpu or native else "float32")


def test_the_device_is_named_with_its_size() -> None:
    name = device_name()
    if torch.cuda.is_available():
        assert torch.cuda.get_device_name(0) in name
    else:
        assert name.endswith(f" x {len(os.sched_getaffinity(0))}")
    assert "\n" not in name


def test_a_gpu_is_looked_for_without_starting_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has started it cannot fork vLLM's workers."""
    asked = []
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: asked.append(dict(os.environ)))
    device.is_gpu()
    assert asked == [{"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}]
