"""Engines that run on this CPU as they run on a GPU, in a process of their own, with the methods of ours.

vLLM's second model runner with its Triton kernels interpreted, asynchronous scheduling with its queue of
batches, and morfi's tables. Much of that is settled when vLLM is imported, so it cannot be this process. Run
as a program, this module is such a process: it answers calls on standard input.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from morfi.checkpoints import Checkpoint
from morfi.engine.directions import DecoderRows, Direction, SaeLatents
from morfi.engine.protocol import Completion, Sampling
from morfi.engine.steering import Capture, Steering
from morfi.serve.engine import Engine
from morfi.serve.settings import prepare_process

_BROKEN = "MORFI_TEST_BROKEN"  # in the environment, so that worker processes have it as well
_WAYS = "MORFI_TEST_WAYS"


@dataclass(frozen=True)
class Ways:
    """How an engine runs."""

    runner: int = 2  # which of vLLM's model runners
    asynchronous: bool = True
    tables: bool = True  # the layers are told what to do as a GPU's are
    kernel: bool = False  # by our Triton kernels, interpreted: slowly; else by their references
    padded_to: int = 1  # tokens of a step come in multiples of it, as in graphs
    unpacked: bool = False  # parameters are computed with as they were loaded: swaps are made in place
    fault: str | None = None  # of the operation, one of FAULTS, from the start on


AS_ON_A_GPU = Ways(kernel=True, padded_to=8, unpacked=True)
BY_REFERENCE = replace(AS_ON_A_GPU, kernel=False)  # an interpreted kernel takes some 10 ms for a token


def call(engine: Engine, function: Callable[..., Any], *arguments: Any) -> Any:
    """The value of `function(engine, *arguments)` in the process of the engine.

    The function is one of a module in this folder.
    """
    if isinstance(engine, EngineElsewhere):
        return engine.call(function, *arguments)
    return function(engine, *arguments)


class EngineElsewhere(Engine):
    """An engine in another process, which runs as `ways` say."""

    def __init__(self, model_dir: Path, *, ways: Ways, **settings: Any) -> None:
        """Starts the process and its engine with the settings of `Engine`; raises what that raises."""
        self._folder = tempfile.TemporaryDirectory()
        self._flag = Path(self._folder.name) / "broken"
        self._log = (Path(self._folder.name) / "log").open("w+b")
        own = {
            "PYTHONPATH": str(Path(__file__).parent),
            "MORFI_CACHE": str(Path(self._folder.name) / "cache"),
            "TRITON_INTERPRET": "1",
            _BROKEN: str(self._flag),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpu_path"],
            env=os.environ | own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        try:
            self.start(model_dir, ways=ways, **settings)
        except BaseException:
            self.close()
            raise

    def start(self, model_dir: Path, *, ways: Ways, **settings: Any) -> None:
        """Another engine, which runs as `ways` say, in place of the one that is there."""
        self._flag.unlink(missing_ok=True)
        self._newline_ids: list[int] = self.call(_start, model_dir, ways, settings)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The value of `function(engine, *arguments)` there; of a function of a module in this folder."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((function, arguments), self._process.stdin)
        self._process.stdin.flush()
        try:
            value, error = pickle.load(self._process.stdout)
        except EOFError:
            self._log.seek(0)
            raise AssertionError(self._log.read()[-5000:].decode(errors="replace")) from None
        if error is not None:
            raise error
        return value

    @property
    def checkpoint_sha256(self) -> str | None:
        return self.call(_attribute, "checkpoint_sha256")  # type: ignore[no-any-return]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        on_finished: Callable[[int], None] | None = None,
        *,
        steering: Sequence[Sequence[Steering]] | None = None,
        capture: Capture | Sequence[Capture | None] | None = None,
    ) -> list[list[Completion]]:
        found, error, ended = self.call(_generate, prompts, sampling, steering, capture)
        for n in ended:
            if on_finished is not None:
                on_finished(n)
        if error is not None:
            raise error
        return list(found)

    def register(self, what: Direction | SaeLatents | DecoderRows) -> str:
        return str(self.call(_method, "register", what))

    def release(self, name: str) -> None:
        self.call(_method, "release", name)

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        self.call(_method, "load_checkpoint", checkpoint)

    def reset_prefix_cache(self) -> None:
        self.call(_method, "reset_prefix_cache")

    def break_operation(self) -> None:
        """From now on the operation does nothing, as in a CUDA graph that was captured without it."""
        self._flag.touch()

    def close(self) -> None:
        """Ends the engine and its process."""
        self._process.communicate()  # the end of its input is its end
        self._log.close()
        self._folder.cleanup()


_running: list[Engine] = []  # in this process: one, or none yet
_left: list[str] = []  # of engines that were closed


def left_behind(_: Engine) -> list[str]:
    """What engines that were closed left of what is ours on their device."""
    return _left


def left_by_self_test(engine: Engine) -> list[str]:
    """What the self test at start left, and then another one, in an engine that has had no other requests."""
    from morfi.serve.plugin.self_test import self_test

    core: Any = engine._core.engine_core.engine_core
    left = _kept(core)
    drawn = torch.get_rng_state().tolist(), str(np.random.get_state())
    assert self_test(core) is None
    if (torch.get_rng_state().tolist(), str(np.random.get_state())) != drawn:
        left.append("draws of random numbers")
    return left + _kept(core)


def _kept(core: Any) -> list[str]:
    """What an engine core has of requests that have ended."""
    state = core.model_executor.driver_worker.model_runner.morfi_state
    pool = core.scheduler.kv_cache_manager.block_pool
    kept = {
        "requests": core.scheduler.requests or core.batch_queue,
        "requests that are steered": state.live,
        "reports": state.ended,
        "rows of the bank": state.bank.n_used,
        "histories": () if state.shared_layers is None else state.shared_layers.histories._known,
        "blocks": pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(),  # one is never given out
        "cached blocks": len(pool.cached_block_hash_to_block),
    }
    return [name for name, one in kept.items() if one]


def _start(engine: Engine | None, model_dir: Path, ways: Ways, settings: Mapping[str, Any]) -> list[int]:
    if engine is not None:
        _close(engine)
        _running.clear()
    os.environ[_WAYS] = json.dumps(asdict(ways))  # of worker processes too
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = str(ways.runner - 1)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import envs

    envs.disable_envs_cache()
    _running[:] = [Engine(model_dir, **settings)]
    return _running[0]._newline_ids


def _close(engine: Engine) -> None:
    executor = getattr(engine._core, "model_executor", None)
    worker = getattr(executor, "driver_worker", None)  # None: in another process
    ours: dict[str, weakref.ref[Any]] = {}
    if worker is not None:
        state = worker.model_runner.morfi_state
        ours = {"the state": weakref.ref(state), "the bank": weakref.ref(state.bank.directions.vectors)}
        if state.device_work is not None:
            ours["the tables"] = weakref.ref(state.device_work)
        del state
    del executor, worker
    engine.close()
    gc.collect()
    _left.extend(name for name, one in ours.items() if one() is not None)


def _attribute(engine: Engine, name: str) -> Any:
    return getattr(engine, name)


def _method(engine: Engine, name: str, *arguments: Any) -> Any:
    return getattr(engine, name)(*arguments)


def _generate(
    engine: Engine, prompts: Any, sampling: Any, steering: Any, capture: Any
) -> tuple[list[list[Completion]], Exception | None, list[int]]:
    """The answers or the error, and how many requests had ended at each turn before."""
    ended: list[int] = []
    try:
        found = engine.generate(prompts, sampling, ended.append, steering=steering, capture=capture)
    except Exception as error:  # noqa: BLE001 - who called gets it
        error.add_note(traceback.format_exc())
        return [], error, ended
    return found, None, ended


def use_ways() -> None:
    """Patches vLLM and morfi so that engines of this process run as the environment says when they start."""
    import triton.backends

    # Makes Triton believe in a device, before vllm is imported; nothing is compiled for it.
    driver = type("Driver", (), {"is_active": staticmethod(lambda: True)})
    triton.backends.backends["cpu"] = SimpleNamespace(driver=driver, compiler=None)
    from vllm.model_executor.layers import utils
    from vllm.platforms import current_platform
    from vllm.v1.sample.ops import topk_topp_sampler
    from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

    from morfi.serve.plugin import decoder_layers
    from morfi.serve.weights import in_place, places

    topk_topp_sampler.apply_top_k_top_p_triton = topk_topp_sampler.apply_top_k_top_p_pytorch
    platform, attach = type(current_platform), decoder_layers.attach
    settle = platform.check_and_update_config

    def settle_config(config: Any) -> None:
        settle(config)
        config.scheduler_config.async_scheduling = _ways().asynchronous

    def attach_tables(runner: Any) -> Any:
        state = attach(runner)
        if _ways().tables:
            state.device_work = _tables(state, runner)
            state.shared_layers = None  # a CPU's alone
        return state

    platform.check_and_update_config = staticmethod(settle_config)
    decoder_layers.attach = attach_tables
    CudaGraphManager.dispatch = _padded
    dispatch, are_served = utils.dispatch_cpu_unquantized_gemm, places.are_parameters_served

    def dispatch_unpacked(layer: Any, remove_weight: bool) -> None:
        (compute_with_parameters if _ways().unpacked else dispatch)(layer, remove_weight)

    utils.dispatch_cpu_unquantized_gemm = dispatch_unpacked
    # By setattr, or mypy objects. The second runner's samples need no offset.
    setattr(in_place, "are_parameters_served", lambda model: _ways().unpacked or are_served(model))  # noqa: B010
    setattr(Engine, "_check_seeds", lambda *_: None)  # noqa: B010


def compute_with_parameters(layer: Any, remove_weight: bool) -> None:
    """In place of what packs a layer's parameters for a CPU: they stay as they were loaded, as on a GPU."""
    layer.cpu_linear = torch.nn.functional.linear


def _ways() -> Ways:
    return Ways(**json.loads(os.environ[_WAYS]))


def _tables(state: Any, runner: Any) -> Any:
    """The tables of a GPU, whose operation does nothing where it is broken."""
    from morfi.kernels.expand import expand_, expand_reference
    from morfi.kernels.residual import residual_, residual_reference
    from morfi.serve.plugin.device_work import DeviceWork

    flag, fault = Path(os.environ[_BROKEN]), FAULTS.get(_ways().fault)
    kernel, expand = (residual_, expand_) if _ways().kernel else (residual_reference, expand_reference)
    padded_to = _ways().padded_to
    n_layers, n_tokens = state.layers.stop, runner.vllm_config.scheduler_config.max_num_batched_tokens

    def unless_broken(hidden: torch.Tensor, *args: Any) -> None:
        assert len(hidden) % padded_to == 0
        if fault is not None:
            fault(kernel, hidden, *args)
        elif not flag.exists():
            kernel(hidden, *args)

    return DeviceWork(n_layers, n_tokens, state.d_model, runner.device, unless_broken, expand=expand)


def _twice(kernel: Callable[..., None], *args: Any) -> None:
    kernel(*args)
    kernel(*args)


def _with_the_wrong_sign(kernel: Callable[..., None], *args: Any) -> None:
    *others, directions = args
    kernel(*others, replace(directions, vectors=-directions.vectors))


def _in_the_other_of_two_layers(kernel: Callable[..., None], *args: Any) -> None:
    hidden, residual, line, tables, directions = args
    kernel(hidden, residual, tables.active[1 - line[1]], tables, directions)


def _not_at_all(*_: Any) -> None:
    pass


FAULTS: dict[str | None, Callable[..., None]] = {
    "twice": _twice,
    "with the wrong sign": _with_the_wrong_sign,
    "in the other layer": _in_the_other_of_two_layers,
    "not at all": _not_at_all,
}


def _padded(_: Any, num_reqs: int, num_tokens: int, *__: Any, **___: Any) -> Any:
    """The batch of a step as it is run: its tokens padded, without a graph."""
    from vllm.config.compilation import CUDAGraphMode
    from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

    multiple = _ways().padded_to
    n_tokens = -(-num_tokens // multiple) * multiple
    return BatchExecutionDescriptor(CUDAGraphMode.NONE, num_tokens=n_tokens, num_reqs=num_reqs)


def main() -> None:
    """Answers calls on standard input, pickled, until its end."""
    calls, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what vLLM prints is no answer
    prepare_process(gpu=False, verbose=False)
    use_ways()
    while True:
        try:
            function, arguments = pickle.load(calls)
        except EOFError:
            break
        value, error = None, None
        try:
            value = function(next(iter(_running), None), *arguments)
        except Exception as raised:  # noqa: BLE001 - who called gets it
            raised.add_note(traceback.format_exc())
            error = raised
        pickle.dump((value, error), answers)
        answers.flush()
    for engine in _running:
        engine.close()


if __name__ == "__main__":
    import gpu_path  # as which those who call know it

    gpu_path.main()
elif __name__ == "__mp_main__":  # a worker, which starts with nothing of this process
    use_ways()
