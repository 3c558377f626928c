"""The plugin refuses what it was not made for, and a step that did not do what was asked never passes."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from morfi.engine.directions import Direction, pack
from morfi.engine.protocol import Sampling
from morfi.engine.steering import Capture, Steering, to_json
from morfi.errors import InputError, MorfiError
from morfi.serve.engine import Engine
from morfi.serve.plugin import hooks
from morfi.serve.plugin.admission import Admission, admit
from morfi.serve.plugin.reports import applied, captured
from morfi.serve.plugin.step import ResidualState
from morfi.serve.processes import naming_death


def make_state() -> tuple[ResidualState, str]:
    """The state of a worker with one request, "a", whose 3 prompt tokens are steered after layer 0."""
    state = ResidualState(range(2), 4, 8, torch.device("cpu"))
    direction = Direction(torch.ones(4))
    specification = to_json([Steering(0, direction.sha256, strength=1.0)], Capture((1,)))
    ready = {
        **specification,
        "report": True,
        "shard": None,
        "directions": {direction.sha256: pack(direction)},
    }
    state.add("a", 3, {"morfi": ready})
    return state, direction.sha256


def test_vllm_finds_the_plugin() -> None:
    found = importlib.metadata.entry_points(group="vllm.general_plugins", name="morfi")
    assert [entry.load() for entry in found] == [hooks.register]


def test_a_moved_patch_point_stops_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    hooks.register()  # as it is now, for the second time
    monkeypatch.setattr(GPUModelRunner, "_prepare_inputs", lambda self, other: None)
    with pytest.raises(RuntimeError, match=r"_prepare_inputs is not as in vLLM 0\.32.*VLLM_PLUGINS"):
        hooks.register()
    monkeypatch.undo()
    monkeypatch.delattr(GPUModelRunner, "execute_model")
    with pytest.raises(RuntimeError, match=r"execute_model is not as in vLLM"):
        hooks.register()


def test_a_layer_that_was_not_steered_stops_the_step() -> None:
    state, _ = make_state()
    hidden, rest = torch.zeros(3, 4), torch.zeros(3, 4)
    state.begin(["a"], [0], [3])
    state.apply(0, hidden, rest)
    assert torch.equal(hidden, torch.ones(3, 4))
    with pytest.raises(
        MorfiError, match=r"layer 1 was to be steered or captured once in this step.* 0 times"
    ):
        state.end(torch.arange(3))


def test_a_request_that_skips_positions_stops_the_step() -> None:
    state, _ = make_state()
    state.begin(["a"], [0], [2])
    with pytest.raises(RuntimeError, match="skipped from 2 to 3"):
        state.begin(["a"], [3], [1])


def test_reports_that_lack_something_fail_the_request() -> None:
    _, name = make_state()
    wanted = [Steering(0, name, strength=1.0)]
    for request_reports in ([], [None]):
        with pytest.raises(MorfiError, match="no worker reports that layer 0"):
            applied(wanted, request_reports, 3, 2)
    report: dict[str, Any] = {
        "layers": [0, 2],
        "reached": 3,
        "first": 0,
        "changed": array("H", [1, 1, 1]).tobytes(),
        "failure": None,
        "unproven": None,
        "n_captured": {},
        "captured": {},
    }
    with pytest.raises(MorfiError, match="up to position 3 of 4"):
        applied(wanted, [report], 3, 2)
    assert applied(wanted, [report], 3, 1)[0].n_tokens == 3
    unproven = {**report, "unproven": "layer 0 did not run"}
    with pytest.raises(MorfiError, match="layer 0 did not run"):
        applied(wanted, [report, unproven], 3, 1)  # every rank that holds the layer must have run it
    with pytest.raises(MorfiError, match="0 positions were captured where 1 were asked for"):
        captured(Capture((1,)), [report], 3, 1, 4)


@pytest.mark.usefixtures("starts_vllm")
def test_an_error_in_a_layer_fails_the_requests(
    tiny_base: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(tiny_base("llama"), dtype="float32", context=64) as engine:
        name = engine.register(Direction(torch.ones(64)))

        def fail(*args: object) -> None:
            raise ValueError("the operation broke")

        monkeypatch.setattr(ResidualState, "apply", fail)
        with pytest.raises(ValueError, match="the operation broke"):
            engine.generate([[3, 4, 5]], Sampling(), steering=[[Steering(0, name, strength=1.0)]])


@pytest.mark.usefixtures("starts_vllm")
def test_what_cannot_be_steered_is_refused_by_name(
    tiny_base: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm import SamplingParams

    def find(*_: object) -> None:
        raise InputError("its layers are not in a row")

    monkeypatch.setattr("morfi.serve.plugin.decoder_layers.structure_of", find)
    refusal = "GPT2LMHeadModel cannot be steered or captured: its layers are not in a row"
    with Engine(tiny_base("gpt2"), dtype="float32", context=64) as engine:
        assert engine.generate([[3, 4, 5]], Sampling(max_tokens=2))[0][0].applied == ()
        with pytest.raises(InputError, match=refusal):
            engine.generate([[3, 4, 5]], Sampling(), capture=Capture((0,)))
        # Who calls vLLM itself is told by the engine core.
        engine._admission.refusal = None
        asks = SamplingParams(extra_args={"morfi": {"steering": [], "capture": {"layers": [0]}}})
        with pytest.raises(InputError, match=refusal):
            engine._llm.generate([{"prompt_token_ids": [3, 4]}], asks, use_tqdm=False)
        # And should one come through, nothing runs unsteered.
        worker = engine._core.model_executor.driver_worker.model_runner
        asking = SimpleNamespace(sampling_params=SimpleNamespace(extra_args={"morfi": {}}))
        with pytest.raises(RuntimeError, match=refusal):
            worker.execute_model(SimpleNamespace(scheduled_new_reqs=[asking]))


CHILD = """
import json, sys, torch
from pathlib import Path
from types import SimpleNamespace
from morfi.engine.directions import Direction
from morfi.serve.plugin.admission import Admission, admit
from morfi.serve.engine import Engine
from morfi.engine.steering import Capture, Steering
from morfi.engine.protocol import Sampling

if __name__ == "__main__":
    with Engine(Path(sys.argv[1]), dtype="float32", context=128, overrides=json.loads(sys.argv[2])) as engine:
        name = engine.register(Direction(torch.linspace(-3, 3, 64)))
        for steering in ([], [Steering(0, name, strength=1.0)]):
            prompts = [list(range(3, 60)), [7, 8, 9]]
            found = engine.generate(
                prompts, Sampling(max_tokens=5), steering=[steering] * 2, capture=Capture((0, 1), "all")
            )
            for (one,) in found:
                print(one.token_ids, [round(float(c.values.double().sum()), 2) for c in one.captured])
"""
COMPILED = {"enforce_eager": False}
TWO_RANKS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}


@pytest.mark.parametrize(
    ("overrides", "environment"),
    [
        (TWO_RANKS, {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_OMP_THREADS_BIND": "0|1"}),
        pytest.param(
            COMPILED,
            {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
            marks=pytest.mark.slow,  # compiling takes minutes
        ),
    ],
    ids=["two tensor-parallel worker processes", "compiled"],
)
@pytest.mark.usefixtures("starts_vllm")
def test_worker_processes_and_compiled_models_do_the_same(
    tmp_path: Path,
    tiny_base: Callable[[str], Path],
    overrides: dict[str, Any],
    environment: dict[str, str],
) -> None:
    base = tiny_base("llama")

    def run(overrides: dict[str, Any], environment: dict[str, str]) -> list[str]:
        script = tmp_path / "child.py"
        script.write_text(CHILD)
        done = subprocess.run(
            [sys.executable, "-P", str(script), str(base), json.dumps(overrides)],
            env=os.environ | environment | {"MORFI_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout.splitlines()

    plain = run({}, {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"})
    assert len(plain) == 4
    assert plain[:2] != plain[2:]
    assert run(overrides, environment) == plain


def test_the_death_of_vllms_processes_is_named() -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    for raised, named in (
        (EngineDeadError(), "engine has died, so this call gives no answer"),
        (RuntimeError("Worker failed with error 'layer 3', please"), "error 'layer 3'.* gives no answer"),
    ):
        with pytest.raises(MorfiError, match=named), naming_death():
            raise raised
    with pytest.raises(RuntimeError, match="something else"), naming_death():
        raise RuntimeError("something else")


def test_a_prompt_that_comes_in_parts_is_refused() -> None:
    """Positions counted from the end would be others with each part."""
    params = SimpleNamespace(extra_args={"morfi": {"capture": {"layers": [0]}}})
    with pytest.raises(InputError, match="a prompt that comes in parts cannot be steered or captured"):
        admit(SimpleNamespace(sampling_params=params, resumable=True), Admission(None, 2, 4))
