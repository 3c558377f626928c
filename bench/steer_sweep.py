"""Requests per second of a steer sweep: 20 directions x 8 strengths x 300 questions, each steered on its own.

Claims: at least 90 % of the requests per second of as many unsteered requests with the same prompts, and at
least five times those of transformers with a forward hook at its best batch size. SmolLM2, or a checkpoint of
it, in the dtype it is served in here; one engine. The steered side is the product's own: it judges answers
and stores them, a batch in one transaction; the unsteered side only generates. For the first claim every
answer has as many tokens on both sides, so that neither gains by stopping early. For the second both sides
answer as a sweep does, to the end of the line or 16 tokens, a sample of the questions along one direction at
all strengths: transformers then needs no more than one vector a batch, which is its best case. Steered
requests that are still equal go through the layers up to the steered one as one; unsteered ones never do. The
sides take turns, a slice of the requests at a time, and medians count. Writes bench/results/steer_sweep.md.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from morfi.checkpoints import Checkpoint, resolve
from morfi.checkpoints.tokenizer import load_tokenizer
from morfi.checkpoints.vocabulary import newline_tokens
from morfi.device import device_name
from morfi.engine.protocol import Sampling
from morfi.interventions.directions import Target
from morfi.interventions.run import Request, Stage, _Stream
from morfi.interventions.steerer import Steerer
from morfi.interventions.verdicts import Answerer, Arm, Verdicts
from morfi.questions import load_questions, select
from morfi.questions.prompts import Prompt, build_prompts
from morfi.runs.life import Attempt
from morfi.runs.provenance import versions
from morfi.serve.engine import Engine, start_engine
from morfi.store import Store
from morfi.store.records import DirectionRow

RESULT = Path(__file__).resolve().parent / "results" / "steer_sweep.md"
LAYER, MEDIAN_NORM, N_FIXED, N_MOST = 25, 50.0, 8, 16
ALPHAS = (-1.0, -0.6, -0.4, -0.25, 0.25, 0.4, 0.6, 1.0)
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


@contextlib.contextmanager
def fixed_lengths(engine: Engine) -> Iterator[None]:
    """Every answer of the engine has exactly as many tokens as it may have, in the block."""
    made, newline_ids = engine._params, engine._newline_ids

    def params(wanted: Any) -> Any:
        found = made(wanted)
        found.ignore_eos = True
        return found

    engine._newline_ids = []
    engine._params = params  # type: ignore[method-assign]
    try:
        yield
    finally:
        engine._newline_ids = newline_ids
        engine._params = made  # type: ignore[method-assign]


class Silent:
    """A progress that says nothing."""

    def phase(self, text: str) -> None: ...

    def start(self, n_total: int, n_done: int, unit: str) -> None: ...

    def advance(self, n: int) -> None: ...


@dataclass(frozen=True)
class Served:
    """An engine, and what it is asked."""

    engine: Engine
    checkpoint: Checkpoint
    store: Store
    prompts: dict[str, Prompt]
    targets: Sequence[Target]
    batch: int

    def stream(self, run_id: str, max_tokens: int) -> _Stream:
        """The stream of a steer run."""
        config = SimpleNamespace(batch=self.batch, max_tokens=max_tokens, match="squad")
        served = {Answerer.CHECKPOINT: self.checkpoint}
        plan: Any = SimpleNamespace(config=config, prompts=self.prompts, served=served)
        steerer = Steerer(self.engine, None, "all")  # type: ignore[arg-type] # no latents of an SAE
        for target in self.targets:
            steerer.register(target)
        sha256 = self.checkpoint.sha256
        return _Stream(plan, run_id, Attempt(1), self.store, steerer, Silent(), Verdicts(), sha256)

    def unsteered(self, requests: Sequence[Request]) -> tuple[float, int]:
        """Seconds for the same prompts as they are, and how many of their tokens were cached."""
        begun, n_cached = time.perf_counter(), 0
        for start in range(0, len(requests), self.batch):
            self.engine.reset_prefix_cache()
            part = requests[start : start + self.batch]
            token_ids = [self.prompts[one.question_id].token_ids for one in part]
            answered = self.engine.generate(token_ids, Sampling(max_tokens=N_FIXED))
            assert all(len(one.token_ids) == N_FIXED for (one,) in answered)
            n_cached += sum(one.n_cached_tokens for (one,) in answered)
        return time.perf_counter() - begun, n_cached


def seconds(stream: _Stream, requests: Sequence[Request]) -> float:
    """The seconds that the requests take, judged and stored."""
    begun = time.perf_counter()
    stream.answer(Stage(requests))
    return time.perf_counter() - begun


class Hooked:
    """The checkpoint in transformers, with a forward hook that adds one vector to every position."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        from transformers import AutoModelForCausalLM

        dtype = getattr(torch, checkpoint.dtype)
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint.model_dir, dtype=dtype).eval()
        self.tokenizer = load_tokenizer(checkpoint.model_dir)
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.stop_ids = [self.tokenizer.eos_token_id, *newline_tokens(self.tokenizer)]
        self.change = torch.zeros(self.model.config.hidden_size, dtype=dtype)
        self.model.model.layers[LAYER].register_forward_hook(self._steer)

    def _steer(self, module: Any, inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (output[0] + self.change, *output[1:])
        return output + self.change

    def seconds(self, prompts: Sequence[Prompt], target: Target, alpha: float, batch: int) -> float:
        """The seconds that these prompts take, steered alike, so many at a time and sorted by length."""
        self.change = (target.vector * alpha * MEDIAN_NORM).to(self.change.dtype)
        begun = time.perf_counter()
        ordered = sorted(prompts, key=lambda one: len(one.token_ids))
        with torch.inference_mode():
            for start in range(0, len(ordered), batch):
                texts = [one.text for one in ordered[start : start + batch]]
                inputs = self.tokenizer(texts, return_tensors="pt", padding=True)
                self.model.generate(
                    **inputs,
                    do_sample=False,
                    max_new_tokens=N_MOST,
                    eos_token_id=self.stop_ids,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
        return time.perf_counter() - begun


def measure(options: argparse.Namespace, checkpoint: Checkpoint) -> dict[str, Any]:
    """Requests per second of each side, one figure per slice or round, and what was asked."""
    asked = select(load_questions("world-facts").splits["test"], relations=["P17"], limit=options.questions)
    built = build_prompts(list(asked), {"P17": ()}, load_tokenizer(checkpoint.model_dir))
    prompts = {prompt.question.id: prompt for prompt in built}
    hooked = Hooked(checkpoint)
    targets = directions(options.directions, len(hooked.change))
    alphas = ALPHAS[: options.strengths]
    arms = [Arm(target.row.direction, alpha) for target in targets for alpha in alphas]
    requests = [Request(Answerer.CHECKPOINT, arm, question_id) for question_id in prompts for arm in arms]
    slices = [requests[i : i + options.slice] for i in range(0, len(requests), options.slice)]
    some = built[: options.hooked]
    found: dict[str, Any] = {"steered": [], "unsteered": [], "own": [], "hooks": [], "n_cached": 0}
    settings = {"max_num_seqs": options.seqs} if options.seqs else {}
    with (
        tempfile.TemporaryDirectory() as folder,
        start_engine(checkpoint, context=256, seed=0, overrides=settings) as engine,
    ):
        store = Store(Path(folder) / "bench.duckdb")
        store.prepare()
        served = Served(engine, checkpoint, store, prompts, targets, options.batch)
        with fixed_lengths(engine):
            seconds(served.stream("warm", N_FIXED), slices[0])
            served.unsteered(slices[0])
        stream = served.stream("bench", N_FIXED)
        tried = {b: len(some) / hooked.seconds(some, targets[0], alphas[-1], b) for b in HOOK_BATCHES}
        batch = max(tried, key=lambda b: tried[b])
        every = max(1, len(slices) // options.hook_rounds)
        for number, part in enumerate(slices):
            with fixed_lengths(engine):
                found["steered"].append(len(part) / seconds(stream, part))
                taken, cached = served.unsteered(part)
            found["unsteered"].append(len(part) / taken)
            found["n_cached"] += cached
            if number % every == 0:
                own = [
                    Request(Answerer.CHECKPOINT, arm, p.question.id)
                    for p in some
                    for arm in arms[: len(alphas)]
                ]
                found["own"].append(len(own) / seconds(served.stream(f"own-{number}", N_MOST), own))
                taken = sum(hooked.seconds(some, targets[0], alpha, batch) for alpha in alphas)
                found["hooks"].append(len(own) / taken)
            last = {name: f"{rates[-1]:.1f}" for name, rates in found.items() if isinstance(rates, list)}
            print(f"slice {number + 1} of {len(slices)}", last, file=sys.stderr)
        assert stream.attempt.tally.n_requests == len(requests)
        assert stream.attempt.tally.output_tokens == N_FIXED * len(requests)
        lengths = store.query(
            "SELECT avg(output_tokens) AS n FROM steered_answer WHERE run_id LIKE 'own-%'"
        ).to_pylist()
    return found | {
        "n": len(requests),
        "n_questions": len(prompts),
        "n_hooked": len(some),
        "tried": tried,
        "batch": batch,
        "own_tokens": lengths[0]["n"],
        "lengths": [len(prompt.token_ids) for prompt in built],
    }


def table(found: dict[str, Any], options: argparse.Namespace, checkpoint: Checkpoint) -> str:
    """The results as Markdown."""
    steered, plain, own, hooks = (found[name] for name in ("steered", "unsteered", "own", "hooks"))
    shares = [100 * a / b for a, b in zip(steered, plain, strict=True)]
    times = [a / b for a, b in zip(own, hooks, strict=True)]
    tried = ", ".join(f"{batch}: {rate:.1f}" for batch, rate in found["tried"].items())
    size = (
        f"{options.directions} directions x {options.strengths} strengths x {found['n_questions']} questions"
    )
    low, high = min(found["lengths"]), max(found["lengths"])
    seqs = f", {options.seqs} requests in flight" if options.seqs else ""
    lines = [
        "# A steer sweep beside unsteered requests and transformers hooks",
        "",
        f"{size} = {found['n']} requests, each with its own steering after layer {LAYER} at all positions; "
        f"prompts of {low} to {high} tokens; {checkpoint.name} in {checkpoint.dtype}; {device_name()}; "
        f"batches of {options.batch}{seqs}; {len(steered)} slices of {options.slice} requests, the sides in "
        "turn, medians.",
        "",
        "| side | requests/s | lowest and highest | steered against it | target |",
        "|---|---|---|---|---|",
        f"| steered, judged and stored, {N_FIXED} tokens each | {_cells(steered)} | | |",
        f"| unsteered, generated only, {N_FIXED} tokens each | {_cells(plain)} | "
        f"{_spread(shares, ' %')} | 90 % |",
        f"| steered, judged and stored, to the end of the line | {_cells(own)} | | |",
        f"| transformers with a forward hook, batches of {found['batch']} | {_cells(hooks)} | "
        f"{_spread(times, ' x')} | 5 x |",
        "",
        f"Transformers, and steered beside it, were given {found['n_hooked']} questions along one direction "
        f"at {options.strengths} strengths, {len(hooks)} times; answers to the end of the line had "
        f"{found['own_tokens']:.1f} tokens, at most {N_MOST}. Its requests/s by batch size, once: {tried}. "
        f"Of the unsteered prompts {found['n_cached']} tokens came from the prefix cache.",
        "",
        ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]
    return "\n".join(lines) + "\n"


def _cells(rates: Sequence[float]) -> str:
    return f"{statistics.median(rates):.1f} | {min(rates):.1f} - {max(rates):.1f}"


def _spread(values: Sequence[float], unit: str) -> str:
    return f"{statistics.median(values):.1f}{unit} ({min(values):.1f} - {max(values):.1f})"


def main() -> None:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", default="smollm2", help="SmolLM2, or an adapter's folder")
    parser.add_argument("--seqs", type=int, help="vLLM's max_num_seqs (default: its own)")
    parser.add_argument("--directions", type=int, default=20)
    parser.add_argument("--strengths", type=int, default=8)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--batch", type=int, default=2048, help="requests in one call and transaction")
    parser.add_argument("--slice", type=int, default=4096, help="requests between two turns")
    parser.add_argument("--hooked", type=int, default=256, help="questions that transformers is given")
    parser.add_argument("--hook-rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true", help="print the table, write nothing")
    options = parser.parse_args()
    checkpoint = resolve(options.ckpt)
    text = table(measure(options, checkpoint), options, checkpoint)
    if not options.dry:
        RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
