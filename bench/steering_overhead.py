"""Requests per second with steering and capture, beside the same requests in vLLM without morfi's plugin.

Claims: at least 99 % with the plugin loaded and idle, 97 % with every request steered along one direction,
90 % with 256 different steerings in flight, 97 % with the last prompt token of every request captured.
SmolLM2 in the dtype it is served in here, one engine; every side is measured between two runs of plain vLLM,
for which the plugin is taken off the engine. Every request has as many tokens on every side. Beside them
transformers' `generate` with a forward hook that adds a vector, at the better of two batch sizes, in the same
dtype. Writes bench/results/steering_overhead.md.

With --narrow the same sides on a random model with as many layers but a width of 64, in processor time on one
thread: hardly anything is left there but vLLM's and the plugin's own code, so that what the plugin costs a
request, which the noise of the machine hides beside SmolLM2, can be read off. Writes
bench/results/steering_cost.md.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from morfi.checkpoints import resolve
from morfi.device import device_name
from morfi.engine.directions import Direction
from morfi.engine.steering import Capture, Steering, to_json
from morfi.runs.provenance import versions
from morfi.serve.engine import Engine, start_engine

RESULTS = Path(__file__).resolve().parent / "results"
MODEL = "smollm2"
LAYER = 15
N_PROMPT = 24
N_OUTPUT = 8
TARGETS = {
    "plugin loaded, idle": 99,
    "every request steered, one direction": 97,
    "every request steered, each its own way": 90,
    "last prompt token of every request captured": 97,
}


@contextlib.contextmanager
def without_plugin(engine: Engine) -> Iterator[None]:
    """vLLM as it is without morfi's plugin, for the length of the block."""
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    wrapped = [
        (InputProcessor, "process_inputs"),
        (GPUModelRunner, "_prepare_inputs"),
        (GPUModelRunner, "execute_model"),
    ]
    ours = [(owner, name, owner.__dict__[name]) for owner, name in wrapped]
    layers = runner_of(engine).get_model().model.layers
    classes = [type(layer) for layer in layers]
    for owner, name, function in ours:
        setattr(owner, name, function.__wrapped__)
    for layer in layers:
        layer.__class__ = type(layer).__bases__[1]
    try:
        yield
    finally:
        for owner, name, function in ours:
            setattr(owner, name, function)
        for layer, steered in zip(layers, classes, strict=True):
            layer.__class__ = steered


def runner_of(engine: Engine) -> Any:
    """vLLM's model runner of an engine in this process."""
    return engine._llm.llm_engine.model_executor.driver_worker.model_runner


def specifications(engine: Engine, n: int) -> dict[str, list[dict[str, Any] | None]]:
    """The requests of each side."""
    draw = torch.Generator().manual_seed(0)
    d_model = engine._admission.d_model
    names = [engine.register(Direction(torch.randn(d_model, generator=draw) * 0.1)) for _ in range(n)]

    def steered(name: str, layer: int, strength: float) -> dict[str, Any]:
        return {**to_json([Steering(layer, name, strength=strength)], None), "report": True}

    captured = {**to_json([], Capture((LAYER,))), "report": True}
    return {
        "plugin loaded, idle": [None] * n,
        "every request steered, one direction": [steered(names[0], LAYER, 1.0)] * n,
        "every request steered, each its own way": [
            steered(name, LAYER + number % 4, 0.5 + number / n) for number, name in enumerate(names)
        ],
        "last prompt token of every request captured": [captured] * n,
    }


def seconds(
    engine: Engine,
    prompts: Sequence[list[int]],
    wanted: Sequence[dict[str, Any] | None],
    ids: Iterator[int],
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """The seconds that all requests take together, reports included."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    core = engine._llm.llm_engine
    engine.reset_prefix_cache()
    began = clock()
    followed, n_tokens = [], 0
    for prompt, one in zip(prompts, wanted, strict=True):
        params = SamplingParams(
            temperature=0,
            max_tokens=N_OUTPUT,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args=None if one is None else {"morfi": one},
        )
        own_id = core.add_request(f"bench-{next(ids)}", {"prompt_token_ids": prompt}, params)
        if one is not None:
            followed.append(own_id)
    while core.has_unfinished_requests():
        n_tokens += sum(len(output.outputs[0].token_ids) for output in core.step() if output.finished)
    if followed:
        (reports,) = core.collective_rpc("morfi_take_reports", args=(followed,))
        reached = [report["reached"] for report in reports]
        assert min(reached) >= N_PROMPT + N_OUTPUT - 1
    taken = clock() - began
    assert n_tokens == len(prompts) * N_OUTPUT
    return taken


def draw_prompts(n: int) -> list[list[int]]:
    """Random token ids, so that no two requests share a prefix."""
    draw = random.Random(0)  # noqa: S311 - no secret
    return [[draw.randrange(10, 40_000) for _ in range(N_PROMPT)] for _ in range(n)]


def measure(
    engine: Engine, rounds: int, prompts: Sequence[list[int]], clock: Callable[[], float]
) -> dict[str, list[tuple[float, float]]]:
    """For each side and round: its seconds, and those of plain vLLM right before and after, their mean."""
    n, ids = len(prompts), itertools.count()
    found: dict[str, list[tuple[float, float]]] = {}
    sides = specifications(engine, n)

    def plain() -> float:
        with without_plugin(engine):
            return seconds(engine, prompts, [None] * n, ids, clock)

    plain()  # warms up
    before = plain()
    for number in range(rounds):
        for side in sides:
            taken = seconds(engine, prompts, sides[side], ids, clock)
            after = plain()
            found.setdefault(side, []).append((taken, statistics.mean((before, after))))
            before = after
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return found


def save_narrow_model(folder: Path) -> None:
    """A random model with SmolLM2's layers and tokens, 64 wide."""
    from transformers import AutoConfig, AutoModelForCausalLM

    source = resolve(MODEL).model_dir
    config = AutoConfig.from_pretrained(source)
    config.hidden_size, config.intermediate_size, config.head_dim = 64, 96, 32
    config.num_attention_heads, config.num_key_value_heads = 2, 1
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for path in source.glob("tokenizer*.json"):
        shutil.copy(path, folder)


def measure_narrow(rounds: int, prompts: Sequence[list[int]]) -> dict[str, list[tuple[float, float]]]:
    """`measure` on the narrow model, in processor time on one thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        save_narrow_model(Path(folder))
        settings = {"max_num_seqs": len(prompts)}
        with Engine(Path(folder), dtype="float32", context=256, overrides=settings) as engine:
            return measure(engine, rounds, prompts, time.process_time)


def measure_hooks(rounds: int, prompts: Sequence[list[int]], batch: int) -> list[float]:
    """Requests per second of transformers with a forward hook that adds a vector, one figure per round."""
    from transformers import AutoModelForCausalLM

    checkpoint = resolve(MODEL)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.model_dir, dtype=checkpoint.dtype).eval()
    vector = torch.randn(model.config.hidden_size).to(model.dtype) * 0.1

    def steer(module: Any, inputs: Any, output: Any) -> Any:
        return (output[0] + vector, *output[1:]) if isinstance(output, tuple) else output + vector

    model.model.layers[LAYER].register_forward_hook(steer)
    rates = []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            began = time.perf_counter()
            for first in range(0, len(prompts), batch):
                ids = torch.tensor(prompts[first : first + batch])
                answer = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    min_new_tokens=N_OUTPUT,
                    max_new_tokens=N_OUTPUT,
                    pad_token_id=0,
                )
                assert answer.shape[1] == N_PROMPT + N_OUTPUT
            rates.append(len(prompts) / (time.perf_counter() - began))
    return rates[1:]


def table(found: dict[str, list[tuple[float, float]]], hooks: dict[int, list[float]], n: int) -> str:
    """The results as Markdown."""
    n_rounds = len(next(iter(found.values())))
    lines = [
        "# Steering and capture beside plain vLLM",
        "",
        f"{n} requests in flight, {N_PROMPT} prompt tokens and {N_OUTPUT} answered each, SmolLM2-135M in "
        f"{resolve(MODEL).dtype}; {device_name()}; {n_rounds} rounds, medians, each run between two of vLLM "
        "without the plugin.",
        "",
        "| side | requests/s | of vLLM without the plugin | lowest and highest round | target |",
        "|---|---|---|---|---|",
    ]
    for side, rounds in found.items():
        ratios = [100 * plain / taken for taken, plain in rounds]
        lines.append(
            f"| {side} | {statistics.median(n / taken for taken, _ in rounds):.1f} | "
            f"{statistics.median(ratios):.1f} % | {min(ratios):.1f} - {max(ratios):.1f} % | "
            f"{TARGETS[side]} % |"
        )
    plain = statistics.median(n / plain for rounds in found.values() for _, plain in rounds)
    lines.append(f"| vLLM without the plugin | {plain:.1f} | | | |")
    batch, rates = max(hooks.items(), key=lambda one: statistics.median(one[1]))
    rate = statistics.median(rates)
    lines.append(
        f"| transformers with a forward hook, batches of {batch} | {rate:.1f} | {100 * rate / plain:.1f} % "
        "| | |"
    )
    lines += ["", ", ".join(f"{name} {version}" for name, version in versions().items())]
    return "\n".join(lines) + "\n"


def narrow_table(found: dict[str, list[tuple[float, float]]], n: int) -> str:
    """The results on the narrow model as Markdown."""
    n_rounds = len(next(iter(found.values())))
    lines = [
        "# What steering and capture cost a request",
        "",
        f"{n} requests in flight, {N_PROMPT} prompt tokens and {N_OUTPUT} answered each, a random model with "
        f"SmolLM2's 30 layers and a width of 64 in float32; processor time on one thread; {device_name()}; "
        f"{n_rounds} rounds, medians, each run between two of vLLM without the plugin.",
        "",
        "| side | ms a request | more than vLLM without the plugin | lowest and highest round |",
        "|---|---|---|---|",
    ]
    for side, rounds in found.items():
        more = [1000 * (taken - plain) / n for taken, plain in rounds]
        lines.append(
            f"| {side} | {statistics.median(1000 * taken / n for taken, _ in rounds):.2f} | "
            f"{statistics.median(more):+.2f} | {min(more):+.2f} - {max(more):+.2f} |"
        )
    plain = statistics.median(1000 * plain / n for rounds in found.values() for _, plain in rounds)
    lines += [f"| vLLM without the plugin | {plain:.2f} | | |", ""]
    lines.append(", ".join(f"{name} {version}" for name, version in versions().items()))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--requests", type=int, default=256, help="in flight at once")
    parser.add_argument("--narrow", action="store_true", help="the plugin's own cost, on a narrow model")
    options = parser.parse_args()
    n, prompts = options.requests, draw_prompts(options.requests)
    if options.narrow:
        text, path = narrow_table(measure_narrow(options.rounds, prompts), n), RESULTS / "steering_cost.md"
    else:
        with start_engine(resolve(MODEL), context=256, seed=0, overrides={"max_num_seqs": n}) as engine:
            found = measure(engine, options.rounds, prompts, time.perf_counter)
        hooks = {batch: measure_hooks(2, prompts, batch) for batch in (64, 256)}
        text, path = table(found, hooks, n), RESULTS / "steering_overhead.md"
    path.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
