"""What tests do with vLLM itself, in the process of an engine: functions for `gpu_path.call`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from hooked_model import PREFIX, draw_steering, state_of

from morfi.engine.directions import Direction
from morfi.engine.protocol import Completion, Sampling
from morfi.engine.steering import Capture, Steering, to_json
from morfi.errors import MorfiError
from morfi.serve.engine import Engine
from morfi.serve.plugin.requested import answer_ids

Reports = list[dict[str, Any]]


def is_idle(engine: Engine) -> bool:
    return not engine._llm.llm_engine.has_unfinished_requests()


def run_to_end(engine: Engine) -> None:
    while not is_idle(engine):
        engine._llm.llm_engine.step()


def count_preemptions(engine: Engine) -> None:
    """From now on vLLM's scheduler counts in `morfi_preempted` how often it preempts a request."""
    scheduler = engine._llm.llm_engine.engine_core.engine_core.scheduler
    preempt = scheduler._preempt_request

    def count(*args: Any, **kwargs: Any) -> Any:
        scheduler.morfi_preempted += 1
        return preempt(*args, **kwargs)

    scheduler.morfi_preempted, scheduler._preempt_request = 0, count


def n_preempted(engine: Engine) -> int:
    return int(engine._llm.llm_engine.engine_core.engine_core.scheduler.morfi_preempted)


def slots(engine: Engine) -> dict[str, int]:
    """How many rows the bank of directions has, how many hold one, and how many requests are followed."""
    (found,) = engine._llm.llm_engine.collective_rpc("morfi_slots")
    return dict(found)


def follow(specification: Mapping[str, Any], **sampling: Any) -> Any:
    """vLLM's parameters for a request that is steered or captured."""
    from vllm import SamplingParams

    return SamplingParams(**sampling, extra_args={"morfi": specification})


def beside_another(
    engine: Engine, good: Mapping[str, Any], bad: Mapping[str, Any] | None
) -> tuple[Reports, str]:
    """The reports of two requests that ask for `good`, and why one that comes between them is refused."""
    from vllm.exceptions import VLLMValidationError

    core, refusal = engine._llm.llm_engine, ""
    engine.reset_prefix_cache()
    own_ids = []
    for number, specification in enumerate((good, bad, good)):
        if specification is not None:
            params = follow(specification, temperature=0, max_tokens=4)
            prompt = {"prompt_token_ids": [*PREFIX[:9], 3 + number]}
            try:
                own_ids.append(core.add_request(f"mate-{number}", prompt, params))
            except VLLMValidationError as error:
                refusal = str(error)
        core.step()
    run_to_end(engine)
    (reports,) = core.collective_rpc("morfi_take_reports", args=(own_ids,))
    return reports, refusal


def as_named(engine: Engine, name: str, wanted: Mapping[str, float]) -> dict[str, Reports]:
    """The reports of two samples of each request, by its id, steered by its strength after layer 1."""
    core, own_ids = engine._llm.llm_engine, {}
    for request_id, strength in wanted.items():
        specification = {
            "steering": [{"layer": 1, "direction": name, "strength": strength}],
            "capture": {"layers": [1]},
            "report": True,
        }
        params = follow(specification, temperature=1, seed=1, max_tokens=1, n=2)
        own_ids[request_id] = core.add_request(request_id, {"prompt_token_ids": PREFIX[:6]}, params)
    run_to_end(engine)
    found = {}
    for request_id, own_id in own_ids.items():
        children = [f"{number}_{own_id}" for number in range(2)]
        (found[request_id],) = core.collective_rpc("morfi_take_reports", args=(children,))
    return found


def answers_of_vllm(engine: Engine, prompt: list[int], entries: Sequence[dict[str, Any] | None]) -> Any:
    """Token ids of vLLM's own `LLM.generate`, a request for each of `entries`; why it refuses, as a text."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    common = {"temperature": 0, "max_tokens": 6, "detokenize": False}
    params = [
        SamplingParams(**common) if entry is None else follow({"steering": [entry]}, **common)
        for entry in entries
    ]
    prompts = [{"prompt_token_ids": prompt}] * len(entries)
    try:
        outputs: Sequence[Any] = engine._llm.generate(prompts, params, use_tqdm=False)
    except VLLMValidationError as error:
        return str(error)
    return [list(output.outputs[0].token_ids) for output in outputs]


@dataclass(frozen=True)
class Asked:
    """Prompts with all that is asked for them."""

    prompts: list[list[int]]
    sampling: Sampling
    steering: list[list[Steering]]
    captures: list[Capture | None]


def written(engine: Engine, asked: Asked, folder: Path) -> list[list[Completion]]:
    """The completions, asked in two halves, with what is captured written to shards."""
    half, found = len(asked.prompts) // 2, []
    with engine.shards(folder, shard_bytes=20_000):
        for part in (slice(0, half), slice(half, None)):
            found += engine.generate(
                asked.prompts[part],
                asked.sampling,
                steering=asked.steering[part],
                capture=asked.captures[part],
            )
    return found


def write_to_a_full_disk(engine: Engine, folder: Path) -> str:
    """Why what is captured was not written."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("morfi.engine.shards.write_tensors", full)
        try:
            with engine.shards(folder, shard_bytes=1):
                for _ in range(20):
                    engine.generate([PREFIX], Sampling(max_tokens=1), capture=Capture((0,)))
        except MorfiError as error:
            return str(error)
    return ""


@dataclass
class Left:
    """What random requests came to, and what they left."""

    kinds: Counter[str] = field(default_factory=Counter)  # ended, aborted, refused
    refused_jointly: list[str] = field(default_factory=list)  # why
    resident: list[int] = field(default_factory=list)  # bytes of the process, again and again
    state: tuple[Any, ...] = ()  # what is kept of requests
    slots: dict[str, int] = field(default_factory=dict)
    n_registered: int = 0


def ask_at_random(engine: Engine, directions: Mapping[str, Direction], n: int) -> Left:
    """Steered, captured, plain, refused and aborted requests, ended a hundred at a time."""
    draw, core, left = random.Random(4), engine._llm.llm_engine, Left()
    for first in range(0, n, 100):
        reported = [
            own_id
            for number in range(first, first + 100)
            for own_id in _ask_at_random(engine, directions, draw, f"random-{number}", left)
        ]
        run_to_end(engine)
        core.collective_rpc("morfi_take_reports", args=(reported,))
        left.resident.append(psutil.Process().memory_info().rss)
    engine.generate([PREFIX], Sampling(max_tokens=1))  # workers hear in the next step who has ended
    state = state_of(engine)
    left.state, left.slots = (state.live, state.ended, state.work), slots(engine)
    left.n_registered = len(engine._admission.registry)
    return left


def _ask_at_random(
    engine: Engine, directions: Mapping[str, Direction], draw: random.Random, request_id: str, left: Left
) -> list[str]:
    """Asks once; returns vLLM's own ids of the answers that are reported."""
    from vllm.exceptions import VLLMValidationError

    core = engine._llm.llm_engine
    prompt = [draw.randrange(3, 200) for _ in range(draw.randrange(2, 9))]
    steering = draw_steering(directions, draw, len(prompt))
    specification: dict[str, Any] = to_json(
        steering, draw.choice((None, Capture((1,)), Capture((0, 1), "all")))
    )
    kind = draw.choice(("ended", "ended", "ended", "aborted", "refused"))
    if kind == "refused":
        specification["steering"] = [{"layer": 99, "direction": next(iter(directions))}]
    specification["report"] = draw.random() < 0.3
    sampling = {"n": draw.choice((1, 1, 1, 2)), "max_tokens": draw.randrange(1, 4)}
    params = follow(specification, temperature=1, detokenize=False, **sampling)
    left.kinds[kind] += 1
    try:
        own_id = core.add_request(request_id, {"prompt_token_ids": prompt}, params)
    except VLLMValidationError as refused:
        if kind != "refused":
            # Projections at many combinations of positions may need more rows than a request has.
            left.refused_jointly.append(str(refused))
        return []
    if kind == "aborted":
        for _ in range(draw.randrange(3)):
            core.step()
        core.abort_request([request_id])
    return answer_ids(own_id, sampling["n"]) if specification["report"] else []
