"""The extra_args of users of vLLM itself, and what they get back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from morfi.engine.directions import Direction
from morfi.engine.protocol import Sampling
from morfi.engine.steering import Capture, Steering
from morfi.errors import InputError
from morfi.serve.engine import Engine
from morfi.serve.plugin import plain
from morfi.serve.plugin.requested import IN_CORE
from morfi.serve.plugin.step import ResidualState

PROMPT = [0, *range(40, 60)]
VECTOR = torch.randn(64, generator=torch.Generator().manual_seed(0))
ENTRY: dict[str, Any] = {"layer": 0, "direction": VECTOR.tolist(), "strength": 2.0}


@pytest.fixture(scope="module")
def engine(tiny_base: Callable[[str], Path], starts_vllm: None) -> Iterator[Engine]:
    base = tiny_base("llama")
    # vLLM's own workers, as its users start them.
    with Engine(base, dtype="float32", context=128, overrides={"worker_extension_cls": ""}) as engine:
        yield engine


def generate(engine: Engine, specification: Any, **sampling: Any) -> list[Any]:
    """vLLM's outputs of PROMPT."""
    from vllm import SamplingParams

    params = SamplingParams(
        **{"temperature": 0, "max_tokens": 6, **sampling}, extra_args={"morfi": specification}
    )
    engine.reset_prefix_cache()
    (found,) = engine._llm.generate([{"prompt_token_ids": PROMPT}], params, use_tqdm=False)
    if specification and hasattr(found.outputs[0], "morfi"):
        assert found.morfi == tuple(output.morfi for output in found.outputs)
    return list(found.outputs)


def refusal(engine: Engine, specification: Any, **sampling: Any) -> str:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError) as refused:
        generate(engine, specification, **sampling)
    return str(refused.value)


def test_what_was_done_and_captured_comes_back(engine: Engine) -> None:
    name = engine.register(Direction(VECTOR))
    (ours,) = engine.generate(
        [PROMPT],
        Sampling(max_tokens=6),
        steering=[[Steering(0, name, strength=2.0)]],
        capture=Capture((0, 1), "all"),
    )[0]
    for n in (1, 3):
        specification = {"steering": [ENTRY], "capture": {"layers": [0, 1], "positions": "all"}}
        stop = engine._newline_ids
        outputs = generate(engine, specification, n=n, stop_token_ids=stop, temperature=0 if n == 1 else 1)
        assert len(outputs) == n
        for output in outputs:
            n_computed = len(PROMPT) + len(output.token_ids) - 1
            assert [one.n_tokens for one in output.morfi.applied] == [n_computed]
            assert [one.values.shape for one in output.morfi.captured] == [(n_computed, 64)] * 2
            n_prompt = len(PROMPT)
            for mine, its in zip(ours.captured, output.morfi.captured, strict=True):
                torch.testing.assert_close(mine.values[:n_prompt], its.values[:n_prompt])
    state: ResidualState = engine._llm.llm_engine.model_executor.driver_worker.model_runner.morfi_state
    generate(engine, {})
    assert not state.ended


def test_an_answer_without_a_report_is_an_error() -> None:
    state = SimpleNamespace(prompt_len=3, detokenizer=SimpleNamespace(num_output_tokens=lambda: 2))
    plain.note(state, {"morfi": {"report": IN_CORE, "steering": [{"layer": 0, "direction": "x"}]}})
    output = SimpleNamespace(finish_reason="stop", stop_reason=None)
    plain.hand_out(state, output)
    assert output.finish_reason == "error"
    assert "no worker reports that layer 0 was steered" in str(output.stop_reason)


def test_a_capture_that_could_not_come_back_is_refused(engine: Engine) -> None:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    capture = {"capture": {"layers": [0]}}
    assert "give `stop_token_ids`" in refusal(engine, capture, stop=["x"])
    with pytest.raises(InputError, match="than DELTA"):
        plain.comes_with_end(SamplingParams(output_kind=RequestOutputKind.DELTA), Capture((0,)))
    assert "over HTTP" in refusal(engine, json.dumps(capture))
    assert generate(engine, {"steering": [ENTRY]}, stop=["x"])[0].token_ids


def test_json_text_is_the_same_specification(engine: Engine) -> None:
    (as_object,), (as_text,) = (
        generate(engine, specification)
        for specification in ({"steering": [ENTRY]}, json.dumps({"steering": [ENTRY]}))
    )
    assert as_object.token_ids == as_text.token_ids != generate(engine, {})[0].token_ids
    assert as_text.morfi.applied[0].n_tokens == len(PROMPT) + len(as_text.token_ids) - 1


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("{", "text is JSON"),
        ("[1]", "is an object, got list"),
        (7, "is an object, got int"),
        ('{"steering": [], "report": true}', 'has no "report"'),
        ('{"steering": [{"layer": 0, "direction": [1], "strength": NaN}]}', "not a finite number"),
        ({"steerings": [ENTRY]}, 'Did you mean "steering"'),
        ({"steering": [{**ENTRY, "layer": -1}]}, "is not a layer"),
    ],
)
def test_what_cannot_be_meant_is_refused(engine: Engine, specification: Any, message: str) -> None:
    assert message in refusal(engine, specification)


@pytest.mark.parametrize("key", ["Morfi", "MORFI", "mofri", "steering", "capture"])
def test_a_key_that_looks_like_morfis_is_refused(key: str) -> None:
    with pytest.raises(InputError, match=f'extra_args has no "{key}".* under "morfi"'):
        plain.asks({key: {}})
    assert not plain.asks({"kv_transfer_params": {}, "another": 1})


@pytest.mark.parametrize(
    "numbers",
    [
        VECTOR,
        VECTOR.numpy(),
        VECTOR.double(),
        VECTOR.double().numpy(),
        VECTOR.bfloat16().float().bfloat16(),
        tuple(VECTOR.tolist()),
        [np.float32(one) for one in VECTOR.tolist()],
    ],
    ids=["tensor", "array", "float64", "float64 array", "bfloat16", "tuple", "NumPy scalars"],
)
def test_numbers_in_other_clothes_are_taken(engine: Engine, numbers: Any) -> None:
    entry = {
        "layer": np.int64(0),
        "direction": numbers,
        "strength": np.float32(2.0),
        "positions": [np.int64(3)],
    }
    exact = (
        torch.as_tensor(numbers).float().tolist() if isinstance(numbers, torch.Tensor) else VECTOR.tolist()
    )
    (mine,), (its,) = (
        generate(engine, {"steering": [one]})
        for one in (entry, {"layer": 0, "direction": exact, "strength": 2.0, "positions": [3]})
    )
    assert mine.token_ids == its.token_ids
    assert mine.morfi.applied[0].n_tokens == its.morfi.applied[0].n_tokens == 1
