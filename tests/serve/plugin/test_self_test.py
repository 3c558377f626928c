"""An engine starts with a test of steering and capture, which finds what is wrong and leaves nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpu_path import EngineElsewhere, Ways, left_by_self_test

from morfi.engine.directions import Direction
from morfi.engine.protocol import Sampling
from morfi.engine.steering import Capture, Steering
from morfi.errors import InputError, MorfiError
from morfi.serve.engine import Engine
from morfi.serve.plugin import self_test
from morfi.serve.plugin.host_work import HostWork
from morfi.serve.plugin.self_test import FaultError, Streams, _check
from morfi.serve.plugin.step import ResidualState

V2 = Ways()
V1 = Ways(runner=1, asynchronous=False)
REFUSED = "LlamaForCausalLM cannot be steered or captured: in the self test at start a request steered after "
FOUND = {
    "twice": f"{REFUSED}layer 0 was moved there by 2 of what was asked",
    "with the wrong sign": f"{REFUSED}layer 0 was moved there by -1 of what was asked",
    "in the other layer": f"{REFUSED}layer 0 was not changed after layer 1",
}


def check_refused(engine: Engine, refusal: str) -> None:
    """Unsteered requests are answered, and no others."""
    assert engine.generate([[3, 4, 5]], Sampling(max_tokens=2))[0][0].token_ids
    name = engine.register(Direction(torch.ones(64)))
    with pytest.raises(InputError, match=refusal):
        engine.generate([[3, 4, 5]], Sampling(), steering=[[Steering(0, name, strength=1.0)]])
    with pytest.raises(InputError, match=refusal):
        engine.generate([[3, 4, 5]], Sampling(), capture=Capture((0,)))


# Without an engine


def streams(n_prompt: int, dtype: torch.dtype) -> Streams:
    """Streams of four layers, of other sizes at each position."""
    draw = torch.Generator().manual_seed(n_prompt)
    sizes = torch.logspace(-2, 3, n_prompt)[:, None]
    found = (torch.randn(4, n_prompt, 64, generator=draw) * sizes).to(dtype).float()
    return dict(enumerate(found))


def steered(plain: Streams, layer: int, change: torch.Tensor, dtype: torch.dtype) -> dict[int, torch.Tensor]:
    """What a request gives that is steered after `layer`, with rounding errors."""
    draw = torch.Generator().manual_seed(layer)
    found = {}
    for at, values in plain.items():
        noisy = values * (1 + torch.finfo(dtype).eps * torch.randn(values.shape, generator=draw))
        found[at] = (noisy + change * (at >= layer)).to(dtype).float()
    return {at: found[at] for at in range(4) if abs(at - layer) <= 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n_prompt", [1, 2])
@pytest.mark.parametrize("layer", range(4))
def test_whatever_is_not_the_change_that_was_asked_is_a_fault(
    layer: int, n_prompt: int, dtype: torch.dtype
) -> None:
    plain, tolerance = streams(n_prompt, dtype), max(8 * torch.finfo(dtype).eps, 1e-3)
    change = torch.zeros(n_prompt, 64)
    change[-1] = plain[layer][-1].roll(7)
    right = steered(plain, layer, change, dtype)
    _check(layer, right, plain, change, tolerance)

    def refused(own: Streams, message: str) -> None:
        with pytest.raises(FaultError, match=f"^a request steered after layer {layer} {message}"):
            _check(layer, own, plain, change, tolerance)

    for share in (0.0, -1.0, 2.0, 1.2):
        moved = f"was moved there by {share:.3g} of what was asked, and by "
        refused(right | {layer: plain[layer] + share * change}, moved if share else "was moved there by ")
    refused(right | {layer: plain[layer] + change.roll(1, 1)}, r"was moved there by .* aside$")
    refused(right | {layer: right[layer] * float("nan")}, "was moved there by nan")
    if n_prompt > 1:
        everywhere: torch.Tensor = plain[layer] + change + change.flip(0)
        refused(right | {layer: everywhere}, r"at position 1 was changed at position 0$")
    if layer > 0:
        refused(right | {layer - 1: plain[layer - 1] + change}, f"was changed after layer {layer - 1}$")
    if layer < 3:
        refused(right | {layer + 1: plain[layer + 1]}, f"was not changed after layer {layer + 1}$")


@pytest.mark.parametrize(
    ("failure", "refusals", "error", "message"),
    [
        (None, [None, None], None, ""),
        (None, [None, "M cannot be steered"], InputError, "^M cannot be steered$"),
        (RuntimeError("M fails\nmore"), [], MorfiError, "^vLLM could not start: M fails$"),
    ],
)
def test_a_server_does_not_start_on_what_cannot_be_steered(
    failure: Exception | None, refusals: list[str | None], error: type[Exception] | None, message: str
) -> None:
    from morfi.serve.http.async_engine import check_steerable

    async def tasks() -> None:
        if failure is not None:
            raise failure

    async def rpc(_: str) -> list[str | None]:
        return refusals

    engine: Any = SimpleNamespace(get_supported_tasks=tasks, collective_rpc=rpc)
    if error is None:
        asyncio.run(check_steerable(engine))
    else:
        with pytest.raises(error, match=message):
            asyncio.run(check_steerable(engine))


# In this process, on a CPU


@pytest.mark.usefixtures("starts_vllm")
@pytest.mark.parametrize(
    ("settings", "compared"),
    [
        ({"context": 64}, [2]),
        ({"context": 3}, [2]),
        ({"context": 2}, [1]),
        ({"context": 64, "overrides": {"max_num_seqs": 1, "num_gpu_blocks_override": 3}}, [2]),
        ({"context": 64, "overrides": {"enable_prefix_caching": False}}, [2]),
        ({"context": 64, "dtype": "bfloat16"}, [2]),
        ({"context": 64, "overrides": {"enable_chunked_prefill": True, "max_num_batched_tokens": 1}}, [2]),
    ],
)
def test_a_right_model_starts_and_nothing_is_left(
    tiny_base: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    compared: list[int],
) -> None:
    lengths: list[int] = []

    def check(layer: int, own: Streams, *args: Any) -> None:
        lengths.append(len(own[layer]))
        _check(layer, own, *args)

    monkeypatch.setattr(self_test, "_check", check)
    overrides = {"disable_log_stats": False, **settings.pop("overrides", {})}
    with Engine(tiny_base("llama"), **{"dtype": "float32", **settings}, overrides=overrides) as engine:
        assert lengths == [n for n in compared for _ in range(2)]
        assert left_by_self_test(engine) == []
        engine.generate([[3]], Sampling(max_tokens=1))
        counts = {one.name: getattr(one, "value", 0) for one in engine._llm.get_metrics()}
        assert counts["vllm:prompt_tokens"] == 1
        assert counts["vllm:prefix_cache_queries"] <= 1


@pytest.mark.usefixtures("starts_vllm")
@pytest.mark.parametrize("name", FOUND)
def test_a_wrong_operation_is_found_on_a_cpu(
    tiny_base: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    apply, steer = ResidualState.apply, HostWork._steer
    if name == "in the other layer":
        monkeypatch.setattr(ResidualState, "apply", lambda self, layer, *rest: apply(self, 1 - layer, *rest))
    else:
        times = {"twice": 2.0, "with the wrong sign": -1.0}[name]

        def wrong(self: HostWork, hidden: torch.Tensor, residual: torch.Tensor | None, *rest: Any) -> None:
            before = hidden.clone()
            steer(self, hidden, residual, *rest)
            hidden.copy_(before + times * (hidden - before))

        monkeypatch.setattr(HostWork, "_steer", wrong)
    with Engine(tiny_base("llama"), dtype="float32", context=64) as engine:
        monkeypatch.undo()  # found is found
        check_refused(engine, FOUND[name])


@pytest.mark.usefixtures("starts_vllm")
@pytest.mark.parametrize("times", [0, 2])
def test_no_engine_starts_whose_operation_does_not_run_once(
    tiny_base: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    run = HostWork.run

    def wrong(self: HostWork, *args: Any) -> None:
        for _ in range(times):
            run(self, *args)

    monkeypatch.setattr(HostWork, "run", wrong)
    message = f"^LlamaForCausalLM fails in the self test at start: layer 0 was .* ran {times} times"
    with pytest.raises(MorfiError, match=message):
        Engine(tiny_base("llama"), dtype="float32", context=64)


# As on a GPU


@pytest.fixture(scope="module")
def elsewhere(
    tiny_base: Callable[[str], Path], starts_vllm: None
) -> Iterator[Callable[[Ways], EngineElsewhere]]:
    """Starts an engine in the one other process, in place of the one before."""
    base = tiny_base("llama")
    with EngineElsewhere(base, ways=V1, dtype="float32", context=64) as engine:

        def start(ways: Ways) -> EngineElsewhere:
            engine.start(base, ways=ways, dtype="float32", context=64)
            return engine

        yield start


@pytest.mark.parametrize("ways", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("name", FOUND)
def test_a_wrong_kernel_is_found(elsewhere: Callable[[Ways], EngineElsewhere], ways: Ways, name: str) -> None:
    check_refused(elsewhere(replace(ways, fault=name)), FOUND[name])


@pytest.mark.parametrize("ways", [V1, V2], ids=["v1", "v2"])
def test_no_engine_starts_whose_kernel_does_not_run(
    elsewhere: Callable[[Ways], EngineElsewhere], ways: Ways
) -> None:
    message = "^LlamaForCausalLM fails in the self test at start: layer 0 was to be steered or captured, but"
    with pytest.raises(MorfiError, match=message):
        elsewhere(replace(ways, fault="not at all"))


@pytest.mark.parametrize("ways", [V1, V2], ids=["v1", "v2"])
def test_a_right_kernel_starts_and_nothing_is_left(
    elsewhere: Callable[[Ways], EngineElsewhere], ways: Ways
) -> None:
    engine = elsewhere(ways)
    assert engine.call(left_by_self_test) == []
    assert engine.generate([[3, 4, 5]], Sampling(), capture=Capture((0,)))[0][0].captured
