"""What tests do with the weights of a live engine, in its process: functions for `gpu_path.call`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from morfi.checkpoints import Checkpoint
from morfi.errors import MorfiError
from morfi.serve.engine import Engine
from morfi.serve.weights import swap


def worker_of(engine: Engine) -> Any:
    return engine._llm.llm_engine.model_executor.driver_worker.worker


def parameters(engine: Engine) -> dict[str, torch.nn.Parameter]:
    return dict(worker_of(engine).model_runner.get_model().named_parameters())


def addresses(engine: Engine) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in parameters(engine).items()}


def is_swapped_in_place(engine: Engine) -> bool:
    """Whether all that may differ from the base was computed where it is."""
    model = worker_of(engine).morfi_live_model
    return model.in_place is not None and set(model.in_place.rooms) >= set(model.dirty)


def load_through_vllm(engine: Engine, checkpoint: Checkpoint) -> None:
    """Loads as where nothing can be computed in place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swap.LiveModel, "_place", lambda *_: None)
        engine.load_checkpoint(checkpoint)


def weight_version(engine: Engine) -> str:
    return str(engine._llm.llm_engine.get_weight_version())


def load_beside_a_request(engine: Engine, checkpoint: Checkpoint) -> str:
    """Why the load is refused while a request runs, which is aborted then, in the middle of its answer."""
    from vllm import SamplingParams

    core = engine._llm.llm_engine
    core.add_request(
        "running", {"prompt_token_ids": [3, 4, 5]}, SamplingParams(max_tokens=9, ignore_eos=True)
    )
    try:
        for _ in range(3):
            core.step()
        engine.load_checkpoint(checkpoint)
    except MorfiError as error:
        return str(error)
    finally:
        core.abort_request(["running"])
    return ""
