"""Runs engines the way a GPU runs them, on a CPU: `gpu_path_child.py MODEL FLAG PLAN`, answers as JSON.

vLLM's second model runner with its Triton kernels interpreted, asynchronous scheduling with its queue of
batches, and morfi's tables, whose operation does nothing while the file FLAG exists: so does a CUDA graph
that was captured without it. PLAN lists engines, as {"tables": , "asynchronous": , "overrides": }.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SWITCHES = "MORFI_TEST_SWITCHES"  # in the environment, so that worker processes have it
LENGTHS = (1, 4, 6)


def interpret_triton() -> None:
    """Makes Triton believe in a device, before vllm is imported; nothing is compiled for it."""
    import triton.backends

    driver = type("Driver", (), {"is_active": staticmethod(lambda: True)})
    triton.backends.backends["cpu"] = SimpleNamespace(driver=driver, compiler=None)


def use_gpu_ways() -> None:
    """Patches vLLM and morfi to do on this CPU what the switches say when an engine starts."""
    if os.environ.get("TRITON_INTERPRET"):
        interpret_triton()
    flag = Path(sys.argv[2])
    from vllm.platforms import current_platform
    from vllm.v1.sample.ops import topk_topp_sampler

    from morfi.kernels.residual import residual_, residual_reference
    from morfi.serve.plugin import decoder_layers
    from morfi.serve.plugin.device_work import DeviceWork

    topk_topp_sampler.apply_top_k_top_p_triton = topk_topp_sampler.apply_top_k_top_p_pytorch
    platform, attach = type(current_platform), decoder_layers.attach
    settle = platform.check_and_update_config

    def settle_config(config: Any) -> None:
        settle(config)
        if json.loads(os.environ[SWITCHES])["asynchronous"]:
            config.scheduler_config.async_scheduling = True

    def attach_tables(runner: Any) -> Any:
        state = attach(runner)
        scheduler = runner.vllm_config.scheduler_config
        if json.loads(os.environ[SWITCHES])["tables"]:
            n_tokens = scheduler.max_num_batched_tokens
            state.device_work = work = DeviceWork(state.layers.stop, n_tokens, state.d_model, runner.device)
            # Triton's kernel, or where nothing is interpreted what it is to do.
            kernel = residual_ if os.environ.get("TRITON_INTERPRET") else residual_reference

            def unless_broken(*args: Any) -> None:
                if not flag.exists():
                    kernel(*args)

            work._kernel = unless_broken
        return state

    platform.check_and_update_config = staticmethod(settle_config)
    decoder_layers.attach = attach_tables


def run(engine: Any, name: str, *, steered: bool, captured: bool) -> dict[str, Any]:
    """The outcome of one call; with an error, how many of its requests had ended."""
    from morfi.engine.protocol import Sampling
    from morfi.engine.steering import Capture, Steering
    from morfi.errors import MorfiError

    ended: list[int] = []
    prompts = [[3, 4, 5 + number] for number in range(len(LENGTHS))]
    wanted = [Steering(0, name, strength=9.0)] if steered else []
    try:
        found = engine.generate(
            prompts,
            [Sampling(max_tokens=n) for n in LENGTHS],
            ended.append,
            steering=[wanted] * len(prompts),
            capture=Capture((0, 1), "all") if captured else None,
        )
    except MorfiError as error:
        return {"error": str(error), "ended": sum(ended)}
    return {
        "tokens": [one.token_ids for (one,) in found],
        "n_tokens": [[part.n_tokens for part in one.applied] for (one,) in found],
        "rows": [[part.values.tolist() for part in one.captured] for (one,) in found],
    }


def main() -> None:
    model, flag, plan = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    out = os.fdopen(os.dup(1), "w")
    from morfi.serve.settings import prepare_process

    prepare_process(gpu=False, verbose=False)
    use_gpu_ways()
    import torch

    from morfi.engine.directions import Direction
    from morfi.serve.engine import Engine
    from morfi.serve.plugin import operation

    answers = []
    for one in plan:
        os.environ[SWITCHES] = json.dumps(one)
        engine = Engine(model, dtype="float32", context=64, overrides=one["overrides"])
        name = engine.register(Direction(torch.linspace(-3, 3, 64)))
        found: dict[str, Any] = {"right": run(engine, name, steered=True, captured=True)}
        found["plain"] = run(engine, name, steered=False, captured=False)
        if one["tables"]:
            flag.touch()
            found["broken"] = run(engine, name, steered=True, captured=one["captured"])
            flag.unlink()
            found["after"] = run(engine, name, steered=False, captured=False)
        engine.close()
        found["left"] = operation._current is not None
        answers.append(found)
    json.dump(answers, out)


if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":  # a worker, which starts with nothing of this process
    use_gpu_ways()
