"""The engine that is verified: on which checkpoint it starts, and for how many tokens."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from morfi.checkpoints import Checkpoint
from morfi.checkpoints.model_files import open_model
from morfi.errors import InputError, MorfiError
from morfi.verification.lines import Line, Outcome
from morfi.verification.verify import CONTEXT, VerifyConfig, fault_of, verify


class Started(Exception):  # noqa: N818 - it is what the tests look at
    """The engine would start."""

    def __init__(self, checkpoint: Checkpoint, **settings: Any) -> None:
        self.checkpoint, self.settings = checkpoint, settings


def start(checkpoint: Checkpoint, **settings: Any) -> Any:
    raise Started(checkpoint, **settings)


def time_vllm(*_: Any, **__: Any) -> list[float]:
    raise AssertionError("no engine was started")


def started(config: VerifyConfig) -> Started:
    with pytest.raises(Started) as found:
        verify(config, start, time_vllm, lambda _: None, on_subject=lambda _: None, on_line=lambda _: None)
    return found.value


@pytest.mark.long
@pytest.mark.usefixtures("isolated_cache")
def test_an_adapter_is_verified_as_the_model_that_it_makes(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    settings = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    checkpoint = started(VerifyConfig(str(tmp_path / "adapter"), dtype="float32")).checkpoint
    assert checkpoint.adapter_sha256 is None
    assert checkpoint.sha256 == checkpoint.base_sha256 == open_model(checkpoint.model_dir).sha256()
    assert checkpoint.sha256 != open_model(tiny_model).sha256()
    assert checkpoint.dtype == "float32"


@pytest.mark.usefixtures("isolated_cache")
def test_the_context_is_no_longer_than_the_checks_need_it_or_as_it_is_set(tiny_model: Path) -> None:
    assert started(VerifyConfig(str(tiny_model))).settings["context"] == CONTEXT
    longer = started(VerifyConfig(str(tiny_model), engine={"max_model_len": 400})).settings
    assert (longer["context"], longer["overrides"]) == (400, {"max_model_len": 400})
    with pytest.raises(InputError, match="the model takes 1 to 512 tokens"):
        started(VerifyConfig(str(tiny_model), engine={"max_model_len": 4000}))


@pytest.mark.usefixtures("isolated_cache")
@pytest.mark.parametrize("error", [RuntimeError("no kernel\nat 0x1"), MorfiError("no kernel")])
def test_a_model_that_the_engine_cannot_run_is_no_difference(tiny_model: Path, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    engine = SimpleNamespace(settings={"max_model_len": CONTEXT}, device="cpu", generate=fail)
    lines: list[Line] = []
    verify(
        VerifyConfig(str(tiny_model)),
        lambda *_, **__: nullcontext(engine),
        time_vllm,
        lambda _: None,
        on_subject=lambda _: None,
        on_line=lines.append,
    )
    assert {line.outcome for line in lines} == {Outcome.UNCHECKED}
    assert lines[0].says.startswith("because the engine fails at a plain request: no kernel")
    assert "\n" not in lines[0].says
    assert fault_of(lines) == "nothing could be checked"
