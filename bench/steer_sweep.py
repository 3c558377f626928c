"""Requests a second of a steer sweep: 20 directions x 8 strengths x 300 questions, each steered on its own.

Claims: at least 90 % of the requests a second of as many unsteered requests with the same prompts, and at
least five times those of transformers with a forward hook at its best batch size. SmolLM2 in the dtype it is
served in here, one engine. The steered side is the product's own: it judges the answers and stores them, a
batch in one transaction; the unsteered side only generates. Every answer has as many tokens on every side, so
that no side gains by stopping early. The sides take turns, a slice of the requests at a time, and the median
over slices counts; transformers gets a sample of the requests, of one direction and strength, which is its
best case. Writes bench/results/steer_sweep.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from morfi.checkpoints import resolve
from morfi.device import device_name
from morfi.interventions.directions import Target
from morfi.interventions.engine import Steerer
from morfi.interventions.run import Request, Stage, _Stream
from morfi.interventions.verdicts import CHECKPOINT, Arm, Verdicts
from morfi.prompts import Prompt, build_prompts, load_tokenizer
from morfi.provenance import versions
from morfi.questions import load_questions, select
from morfi.serve.engine import Engine, start_engine
from morfi.store import Store
from morfi.store.records import DirectionRow
from morfi.types import Sampling

RESULT = Path(__file__).resolve().parent / "results" / "steer_sweep.md"
MODEL, LAYER, MEDIAN_NORM, N_OUTPUT = "smollm2", 25, 50.0, 8
ALPHAS = (-2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 2.0)
HOOK_BATCHES = (32, 64, 128, 256)


def directions(n: int, d_model: int) -> list[Target]:
    """Random unit vectors: what is added costs the same whatever it is."""
    draw = torch.Generator().manual_seed(0)
    rows = [
        DirectionRow(i, f"random {i}", "random", None, LAYER, "add", MEDIAN_NORM, 0, None, None, {})
        for i in range(n)
    ]
    vectors = [torch.nn.functional.normalize(torch.randn(d_model, generator=draw), dim=0) for _ in rows]
    return [Target(row, vector) for row, vector in zip(rows, vectors, strict=True)]


def fix_lengths(engine: Engine) -> None:
    """Every answer of the engine has exactly as many tokens as it may have, from now on."""
    made = engine._params

    def params(wanted: Any) -> Any:
        found = made(wanted)
        found.ignore_eos = True
        return found

    engine._newline_ids = ()
    engine._params = params  # type: ignore[method-assign]


class Silent:
    """A progress that says nothing."""

    def phase(self, text: str) -> None: ...

    def start(self, n_total: int, n_done: int) -> None: ...

    def advance(self, n: int) -> None: ...


def steered_side(
    engine: Engine, store: Store, prompts: dict[str, Prompt], targets: Sequence[Target], batch: int
) -> tuple[_Stream, Callable[[Sequence[Request]], float]]:
    """The stream of a steer run, and what says how long it takes over some requests."""
    config = SimpleNamespace(batch=batch, max_tokens=N_OUTPUT, match="squad")
    checkpoint = resolve(MODEL)
    plan: Any = SimpleNamespace(config=config, prompts=prompts, served={CHECKPOINT: checkpoint})
    steerer = Steerer(engine, None, "all")  # type: ignore[arg-type] # no latents of a SAE
    for target in targets:
        steerer.register(target)
    stream = _Stream(plan, "bench", 1, store, steerer, Silent(), Verdicts(), checkpoint.sha256)

    def run(requests: Sequence[Request]) -> float:
        begun = time.perf_counter()
        stream.answer(Stage(requests))
        return time.perf_counter() - begun

    return stream, run


def unsteered(
    engine: Engine, prompts: dict[str, Prompt], requests: Sequence[Request], batch: int
) -> tuple[float, int]:
    """Seconds for the same prompts as they are, and how many of their tokens came from the prefix cache."""
    begun, n_cached = time.perf_counter(), 0
    for start in range(0, len(requests), batch):
        engine.reset_prefix_cache()
        token_ids = [prompts[one.question_id].token_ids for one in requests[start : start + batch]]
        answered = engine.generate(token_ids, Sampling(max_tokens=N_OUTPUT))
        assert all(len(one.token_ids) == N_OUTPUT for (one,) in answered)
        n_cached += sum(one.n_cached_tokens for (one,) in answered)
    return time.perf_counter() - begun, n_cached


class Hooked:
    """SmolLM2 in transformers, with a forward hook that adds one vector to every position."""

    def __init__(self) -> None:
        from transformers import AutoModelForCausalLM

        checkpoint = resolve(MODEL)
        dtype = getattr(torch, checkpoint.dtype)
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint.model_dir, dtype=dtype).eval()
        self.tokenizer = load_tokenizer(checkpoint.model_dir)
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.change = torch.zeros(self.model.config.hidden_size, dtype=dtype)
        self.model.model.layers[LAYER].register_forward_hook(self._steer)

    def _steer(self, module: Any, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + self.change, *output[1:])
        return output + self.change

    def seconds(self, prompts: Sequence[Prompt], target: Target, alpha: float, batch: int) -> float:
        """What these prompts take, steered alike, so many at a time and sorted by length."""
        self.change = (target.vector * alpha * MEDIAN_NORM).to(self.change.dtype)
        begun = time.perf_counter()
        ordered = sorted(prompts, key=lambda one: len(one.token_ids))
        with torch.inference_mode():
            for start in range(0, len(ordered), batch):
                texts = [one.text for one in ordered[start : start + batch]]
                inputs = self.tokenizer(texts, return_tensors="pt", padding=True)
                found = self.model.generate(
                    **inputs,
                    do_sample=False,
                    min_new_tokens=N_OUTPUT,
                    max_new_tokens=N_OUTPUT,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
                assert found.shape[1] == inputs["input_ids"].shape[1] + N_OUTPUT
        return time.perf_counter() - begun


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Requests a second of each side, a figure a slice, and what was asked."""
    checkpoint = resolve(MODEL)
    asked = select(load_questions("world-facts").splits["test"], relations=["P17"], limit=options.questions)
    built = build_prompts(list(asked), {"P17": ()}, load_tokenizer(checkpoint.model_dir))
    prompts = {prompt.question.id: prompt for prompt in built}
    hooked = Hooked()
    targets = directions(options.directions, len(hooked.change))
    alphas = ALPHAS[: options.strengths]
    arms = [Arm(target.row.direction, alpha) for target in targets for alpha in alphas]
    requests = [Request(CHECKPOINT, arm, question_id) for arm in arms for question_id in prompts]
    slices = [requests[i : i + options.slice] for i in range(0, len(requests), options.slice)]
    some = built[: options.hooked]
    rates: dict[str, list[float]] = {"steered": [], "unsteered": []}
    by_batch: dict[int, list[float]] = {batch: [] for batch in HOOK_BATCHES}
    n_cached = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        start_engine(checkpoint, context=256, seed=0, overrides={}) as engine,
    ):
        fix_lengths(engine)
        store = Store(Path(folder) / "bench.duckdb")
        store.prepare()
        stream, steer = steered_side(engine, store, prompts, targets, options.batch)
        unsteered(engine, prompts, slices[0][:256], options.batch)  # warms up
        for number, part in enumerate(slices):
            rates["steered"].append(len(part) / steer(part))
            seconds, cached = unsteered(engine, prompts, part, options.batch)
            rates["unsteered"].append(len(part) / seconds)
            n_cached += cached
            if number % max(1, len(slices) // options.hook_rounds) == 0:
                for batch, found in by_batch.items():
                    found.append(len(some) / hooked.seconds(some, targets[0], alphas[0], batch))
            print(f"slice {number + 1} of {len(slices)}", {k: round(v[-1], 1) for k, v in rates.items()})
            sys.stdout.flush()
        n_stored = store.query("SELECT count(*) AS n FROM steered_answer").to_pylist()[0]["n"]
        assert n_stored == len(requests) == stream.tally.n_requests
        assert stream.tally.output_tokens == N_OUTPUT * len(requests)
    return {
        "rates": rates,
        "by_batch": by_batch,
        "n": len(requests),
        "n_arms": len(arms),
        "n_questions": len(prompts),
        "n_cached": n_cached,
        "n_hooked": len(some),
        "lengths": [len(prompt.token_ids) for prompt in built],
        "dtype": checkpoint.dtype,
    }


def table(found: dict[str, Any], options: argparse.Namespace) -> str:
    """The results as Markdown."""
    steered, plain = found["rates"]["steered"], found["rates"]["unsteered"]
    shares = [100 * a / b for a, b in zip(steered, plain, strict=True)]
    batch, hooks = max(found["by_batch"].items(), key=lambda one: statistics.median(one[1]))
    times = statistics.median(steered) / statistics.median(hooks)
    tried = ", ".join(f"{b}: {statistics.median(r):.1f}" for b, r in found["by_batch"].items())
    size = (
        f"{options.directions} directions x {options.strengths} strengths x {found['n_questions']} questions"
    )
    low, high = min(found["lengths"]), max(found["lengths"])
    share = f"{statistics.median(shares):.1f} % ({min(shares):.1f} - {max(shares):.1f})"
    lines = [
        "# A steer sweep beside unsteered requests and transformers hooks",
        "",
        f"{size} = {found['n']} requests, each with its own steering after layer {LAYER} at all positions; "
        f"prompts of {low} to {high} tokens, {N_OUTPUT} answered; SmolLM2-135M in {found['dtype']}; "
        f"{device_name()}; batches of {options.batch}; {len(steered)} slices of {options.slice} requests, "
        "the sides in turn, medians.",
        "",
        "| side | requests/s | lowest and highest | steered against it | target |",
        "|---|---|---|---|---|",
        f"| steered, judged and stored | {_cells(steered)} | | |",
        f"| unsteered, generated only | {_cells(plain)} | {share} | 90 % |",
        f"| transformers with a forward hook, batches of {batch} | {_cells(hooks)} | {times:.1f} x | 5 x |",
        "",
        f"Transformers was given {found['n_hooked']} of the requests, {len(hooks)} times, sorted by length; "
        f"requests/s by batch size: {tried}. Of the unsteered prompts {found['n_cached']} tokens came from "
        "the prefix cache (blocks of 32 tokens); steered requests share prefixes only with those that are "
        "steered alike.",
        "",
        ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]
    return "\n".join(lines) + "\n"


def _cells(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):.1f} | {min(rates):.1f} - {max(rates):.1f}"


def main() -> None:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directions", type=int, default=20)
    parser.add_argument("--strengths", type=int, default=8)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--batch", type=int, default=2048, help="requests in one call and transaction")
    parser.add_argument("--slice", type=int, default=4096, help="requests between two turns")
    parser.add_argument("--hooked", type=int, default=256, help="requests that transformers is given")
    parser.add_argument("--hook-rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="print the table, write nothing")
    options = parser.parse_args()
    text = table(measure(options), options)
    if not options.dry:
        RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
