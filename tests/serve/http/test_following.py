"""No steered answer without its reports: what is fetched when, and what becomes of missing ones."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.responses import StreamingResponse
from vllm.v1.engine.exceptions import EngineGenerateError

from morfi.engine.steering import Latent, Steering
from morfi.errors import InputError, MorfiError
from morfi.serve.http.async_engine import (
    ABORTED,
    Followed,
    Reports,
    SteeringLLM,
    _with_prompt_logprobs,
    _with_reason,
    start_async_engine,
)
from morfi.serve.http.routes import answer, named, with_applied
from morfi.serve.http.state import Planned
from morfi.serve.http.wire import AppliedLatent
from morfi.serve.plugin.reports import attach, detach
from morfi.serve.plugin.requested import WITH_END

STEERING = (Steering(1, Latent("sae", 3), "add", 2.0),)
LATENT = AppliedLatent(id=3, sae="sae", op="add", alpha=1.0, layer=1, positions="all", strength=2.0)
PARALLEL = {"use_ubatching": False, "decode_context_parallel_size": 1, "data_parallel_size": 1}


def report(reached: int, layers: tuple[int, int] = (0, 2)) -> dict[str, Any]:
    return {
        "layers": list(layers),
        "reached": reached,
        "unproven": None,
        "first": 0,
        "changed": array("H", [1] * reached).tobytes(),
        "failure": None,
        "n_captured": {},
        "captured": {},
    }


class Workers:
    """Two workers, of which the first has no layers that are steered; calls take a while."""

    errored = False

    def __init__(self, reached: dict[str, int]) -> None:
        self.reached = reached
        self.calls: list[list[str]] = []

    async def collective_rpc(self, method: str, args: tuple[list[str]]) -> list[Any]:
        assert method == "morfi_take_reports"
        self.calls.append(list(args[0]))
        await asyncio.sleep(0.01)
        found = [report(self.reached[name], (1, 2)) if name in self.reached else None for name in args[0]]
        return [[report(0, (0, 1)) for _ in args[0]], found]


def test_reports_of_requests_that_end_meanwhile_are_fetched_in_one_call() -> None:
    async def run() -> None:
        workers = Workers({f"r{i}": i for i in range(9)})
        reports = Reports(workers)  # type: ignore[arg-type]

        async def take(i: int) -> None:
            await asyncio.sleep(0.002 * i)
            (found,) = await reports.take([f"r{i}"])
            assert [one and one["reached"] for one in found] == [0, i]

        await asyncio.gather(*(take(i) for i in range(9)))
        assert sorted(name for call in workers.calls for name in call) == sorted(workers.reached)
        assert len(workers.calls) < 6

    asyncio.run(run())


def test_one_that_is_cancelled_does_not_take_the_others_reports_with_it() -> None:
    async def run() -> None:
        reports = Reports(Workers({"a": 1, "b": 2}))  # type: ignore[arg-type]
        first = asyncio.create_task(reports.take(["a"]))
        second = asyncio.create_task(reports.take(["b"]))
        await asyncio.sleep(0.001)
        first.cancel()
        ((_, found),) = await second
        assert found is not None
        assert found["reached"] == 2

    asyncio.run(run())


async def outputs_of(
    texts: Sequence[tuple[int, list[int], str | None]], n_prompt: int
) -> AsyncGenerator[Any, None]:
    """vLLM's outputs: (choice, tokens, finish reason) each, the last one ends the request."""
    for place, (index, token_ids, reason) in enumerate(texts):
        part = SimpleNamespace(index=index, token_ids=token_ids, finish_reason=reason)
        prompt = list(range(n_prompt)) if place == 0 else None
        yield SimpleNamespace(prompt_token_ids=prompt, outputs=[part], finished=place == len(texts) - 1)


def follow(followed: Followed, workers: Workers, texts: Any, n: int) -> list[Any]:
    async def run() -> list[Any]:
        engine: Any = SimpleNamespace(
            reports=Reports(workers),  # type: ignore[arg-type]
            model_config=SimpleNamespace(get_hidden_size=lambda: 4),
        )
        found = SteeringLLM._follow(engine, outputs_of(texts, 5), followed, n)
        return [output async for output in found]

    return asyncio.run(run())


def test_a_request_ends_once_all_its_answers_are_reported() -> None:
    texts = [(0, [7], None), (1, [7, 8], None), (0, [9], "stop"), (1, [9], "length")]
    followed = Followed(STEERING, request_id="r")
    workers = Workers({"0_r": 6, "1_r": 7})
    assert len(follow(followed, workers, texts, 2)) == 4
    assert followed.n_tokens == [6, 7]
    assert workers.calls == [["0_r", "1_r"]]


def test_a_request_that_ends_in_the_text_and_in_the_core_at_once_has_its_report() -> None:
    async def run() -> None:
        workers = Workers({})  # which have handed them out with the last output
        reports = Reports(workers)  # type: ignore[arg-type]
        reports.expect(["before", "after", "never"])
        reports.collect([with_report("before", 3), with_report("unknown", 3)], set())
        taking = asyncio.ensure_future(reports.take(["before", "after"]))
        await asyncio.sleep(0.05)
        reports.collect([with_report("after", 4)], set())
        assert [one and one["reached"] for _, one in await taking] == [3, 4]
        reports.forget(["never"])
        reports.collect([with_report(name, 1) for name in ("before", "never")], set())
        assert not reports._came

    asyncio.run(run())


@pytest.mark.parametrize("reached", [{}, {"r": 5}], ids=["no report", "not to the end"])
def test_a_request_whose_report_is_missing_or_short_fails(reached: dict[str, int]) -> None:
    followed = Followed(STEERING, request_id="r")
    with pytest.raises(MorfiError, match="not what was asked for"):
        follow(followed, Workers(reached), [(0, [7], None), (0, [8], "stop")], 1)
    assert followed.n_tokens == []


def with_report(request_id: str, reached: int) -> Any:
    """The last output of a request as the engine core sends it, of whose workers the second has the layer."""
    outputs = {0: SimpleNamespace(outputs=[ended(request_id)])}
    workers = [[report(0, (0, 1))], [report(reached, (1, 2))]]
    executor = SimpleNamespace(collective_rpc=lambda _, args: workers)
    attach(executor, {request_id: asking(WITH_END)}, outputs)
    return outputs[0].outputs[0]


def ended(request_id: str) -> SimpleNamespace:
    return SimpleNamespace(request_id=request_id, finish_reason="stop", kv_transfer_params=None)


def asking(report: Any) -> SimpleNamespace:
    params = SimpleNamespace(extra_args={"morfi": {"report": report}})
    return SimpleNamespace(sampling_params=params, num_tokens=7)


def test_reports_that_came_with_the_last_outputs_are_not_fetched() -> None:
    async def run() -> None:
        workers = Workers({"b": 2})
        reports = Reports(workers)  # type: ignore[arg-type]
        outputs = [with_report("a", 1), with_report("unknown", 1), ended("b")]
        reports.collect(outputs, {"a", "b"})
        assert [one.kv_transfer_params for one in outputs] == [None, None, None]
        found = await reports.take(["b", "a"])
        assert [one and one["reached"] for _, one in found] == [2, 1]
        assert workers.calls == [["b"]]
        reports.collect([with_report("c", 1)], {"c"})
        reports.forget(["c"])
        await asyncio.sleep(0.05)
        assert workers.calls == [["b"]]

    asyncio.run(run())


def test_only_who_asks_for_it_gets_reports_with_the_end() -> None:
    def call(method: str, args: tuple[list[str], list[int]]) -> list[list[Any]]:
        calls.append(args[0])
        assert args[1] == [6]  # the last token is never put into the model
        return [[report(5)] * len(args[0])]

    calls: list[list[str]] = []
    running = ended("running")
    running.finish_reason = None
    parts = [ended("plain"), ended("kept"), ended("asks"), running]
    requests = {"kept": asking(True), "asks": asking(WITH_END), "running": asking(WITH_END)}
    requests["plain"] = SimpleNamespace(sampling_params=SimpleNamespace(extra_args=None))
    attach(SimpleNamespace(collective_rpc=call), requests, {0: SimpleNamespace(outputs=parts)})
    assert calls == [["asks"]]
    assert [detach(part) for part in parts] == [None, None, [report(5)], None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speculative_config": object()}, "do not work with speculative decoding; start without"),
        ({"kv_transfer_config": object()}, "do not work with keys and values from elsewhere"),
        ({"model_config": SimpleNamespace(enable_sleep_mode=True)}, "do not work with sleep mode"),
        ({"parallel_config": SimpleNamespace(**PARALLEL | {"data_parallel_size": 2})}, "data parallelism"),
    ],
)
def test_a_server_that_could_steer_nothing_does_not_start(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    config = SimpleNamespace(
        **{
            "parallel_config": SimpleNamespace(**PARALLEL),
            "speculative_config": None,
            "kv_transfer_config": None,
            "model_config": SimpleNamespace(enable_sleep_mode=False),
            **changes,
        }
    )
    made = SimpleNamespace(create_engine_config=lambda _: config)
    monkeypatch.setattr("morfi.serve.http.async_engine.AsyncEngineArgs", lambda **_: made)
    checkpoint = SimpleNamespace(adapter_dir=None, sha256="a", name="base")
    with pytest.raises(InputError, match=message):
        start_async_engine(checkpoint, {"model": "m"})  # type: ignore[arg-type]


def test_reports_of_a_request_that_is_dropped_are_fetched_and_forgotten() -> None:
    async def run() -> None:
        workers = Workers({"r": 5})
        engine: Any = SimpleNamespace(reports=Reports(workers))  # type: ignore[arg-type]
        texts = [(0, [7], None), (0, [8], "stop")]
        found = SteeringLLM._follow(engine, outputs_of(texts, 5), Followed(STEERING, request_id="r"), 1)
        await anext(found)
        await found.aclose()
        await asyncio.sleep(0.05)
        assert workers.calls == [["r"]]

    asyncio.run(run())


def streamed(parts: Sequence[str], followed: Sequence[Followed], n_answers: int) -> list[str]:
    planned = Planned(STEERING, [LATENT], [], "base")

    async def run() -> list[str]:
        async def given() -> AsyncGenerator[str, None]:
            for part in parts:
                yield part

        return [part async for part in with_applied(given(), planned, followed, n_answers)]

    return asyncio.run(run())


def test_an_answer_that_was_ended_is_passed_on_without_its_reports() -> None:
    followed = Followed(STEERING, request_id="r")
    workers = Workers({"r": 5})
    assert len(follow(followed, workers, [(0, [7], None), (0, [], ABORTED)], 1)) == 2
    assert followed.n_tokens == []


def test_each_answer_of_a_stream_has_the_prompts_log_probabilities() -> None:
    async def given() -> AsyncGenerator[Any, None]:
        for found in (None, ["of the prompt"], None):
            yield SimpleNamespace(prompt_logprobs=found)

    async def run() -> list[Any]:
        return [output.prompt_logprobs async for output in _with_prompt_logprobs(given())]

    assert asyncio.run(run()) == [None, ["of the prompt"], ["of the prompt"]]


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        (OverflowError("too large"), "the request: too large"),
        (AssertionError(), "the request: AssertionError"),
    ],
)
def test_what_vllm_fails_on_without_a_word_is_named(cause: Exception, said: str) -> None:
    async def given() -> AsyncGenerator[Any, None]:
        yield "a part"
        raise EngineGenerateError from cause

    async def run() -> None:
        outputs = _with_reason(given())
        assert await anext(outputs) == "a part"
        with pytest.raises(MorfiError, match=said):
            await anext(outputs)

    asyncio.run(run())


def test_a_stream_names_its_checkpoint_in_every_part_and_ends_with_an_error_where_it_was_ended() -> None:
    async def run(*parts: str) -> list[str]:
        async def given() -> AsyncGenerator[str, None]:
            for part in parts:
                yield part

        return [part async for part in named(given(), 'M "1"')]

    parts = [chunk(None), chunk("stop"), 'data: {"error":{"message":"x"}}\n\n', "data: [DONE]\n\n"]
    found = asyncio.run(run(*parts))
    assert [json.loads(part.removeprefix("data: "))["checkpoint"] for part in found[:2]] == ['M "1"'] * 2
    assert found[2:] == parts[2:]
    found = asyncio.run(run(chunk(None), chunk(ABORTED), *parts[1:]))
    assert "a checkpoint is being loaded" in found[1]
    assert found[2:] == ["data: [DONE]\n\n"]


def test_a_stream_that_would_begin_with_an_error_is_answered_by_its_status() -> None:
    async def run(*parts: str) -> Any:
        async def given() -> AsyncGenerator[str, None]:
            for part in parts:
                yield part

        found = await answer(given(), "M", None, [], 1)
        if not isinstance(found, StreamingResponse):
            return found.status_code, json.loads(bytes(found.body))
        return [part async for part in found.body_iterator]

    error = {"error": {"message": "x", "type": "bad", "param": None, "code": 400}}
    wrong = f"data: {json.dumps(error, separators=(',', ':'))}\n\n"
    assert asyncio.run(run(wrong, "data: [DONE]\n\n")) == (400, error)
    found = asyncio.run(run(chunk(None), wrong, "data: [DONE]\n\n"))
    assert [part[:12] for part in found] == ['data: {"chec', 'data: {"erro', "data: [DONE]"]


def chunk(*reasons: str | None) -> str:
    choices = [
        {"index": i, "text": 'a "finish_reason":"x"', "finish_reason": r} for i, r in enumerate(reasons)
    ]
    return f"data: {json.dumps({'choices': choices}, separators=(',', ':'))}\n\n"


def test_the_chunk_that_ends_the_last_choice_says_what_was_applied() -> None:
    followed = [Followed(STEERING, n_tokens=[4, 5])]
    parts = [chunk(None), chunk("stop"), chunk(None, "length"), chunk(None), "data: [DONE]\n\n"]
    found = streamed(parts, followed, 2)
    said = [place for place, part in enumerate(found) if '"steering_applied"' in part]
    assert said == [2]
    assert json.loads(found[2].removeprefix("data: "))["steering_applied"]["n_tokens"] == [4, 5]
    assert [part for place, part in enumerate(found) if place != 2] == [*parts[:2], *parts[3:]]


def test_a_stream_that_would_end_without_is_ended_by_an_error() -> None:
    for followed in ([Followed(STEERING)], [Followed(STEERING, n_tokens=[4]), Followed(STEERING)]):
        found = streamed([chunk(None), chunk("stop"), "data: [DONE]\n\n"], followed, 1)
        assert [part for part in found if '"error"' in part]
        assert not [part for part in found if "steering_applied" in part]
    found = streamed([chunk(None), "data: [DONE]\n\n"], [Followed(STEERING, n_tokens=[4])], 1)
    assert '"code": 500' in found[1]


def test_an_error_of_vllm_passes_as_it_is() -> None:
    parts = ['data: {"error":{"message":"x"}}\n\n', "data: [DONE]\n\n"]
    assert streamed(parts, [Followed(STEERING)], 1) == parts
