"""The share of an evaluation's wall time that is not generation: prompts, matching and the store.

Claim: under 5 % at 10,000 questions. A stand-in engine answers at once, so that all the time taken is morfi's
own; the share is against the requests/s of bench/eval_throughput.py, given with --requests-per-s. Starting
vLLM is not counted. Writes bench/results/eval_overhead.md.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from morfi.device import device_name
from morfi.engine.protocol import Completion, Sampling
from morfi.evaluation.config import EvalConfig
from morfi.evaluation.evaluate import prepare
from morfi.report.evaluation import run_report
from morfi.runs.answering import answer
from morfi.store import Store
from morfi.terminal import TerminalProgress

RESULTS = Path(__file__).resolve().parent / "results" / "eval_overhead.md"
ANSWER = Completion(" Nowhere", (1, 2, 3), "stop", 64)


class Instant:
    """A generator that takes no time."""

    settings: Mapping[str, Any] = {}
    device = "none"

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        on_finished: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        """The same answer to every prompt."""
        if on_finished is not None:
            on_finished(len(prompts))
        return [[ANSWER] for _ in prompts]

    def reset_prefix_cache(self) -> None:
        """There is no cache."""


@contextlib.contextmanager
def start_instant(*_: Any, **__: Any) -> Iterator[Any]:
    """Starts nothing; an evaluation asks an engine for no more than `Instant` has."""
    yield Instant()


def main() -> None:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--data", required=True, help="a question file with at least n questions")
    parser.add_argument("--requests-per-s", type=float, required=True)
    options = parser.parse_args()
    warm = EvalConfig(ckpt="smollm2", limit=10)
    prepare(warm, TerminalProgress())  # imports and the conversion of the embedded model, once
    parts: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, TerminalProgress() as progress:
        store = Store(Path(folder) / "bench.duckdb")
        store.prepare()
        begun = time.perf_counter()
        config = EvalConfig(ckpt="smollm2", data=options.data, limit=options.n)
        task = prepare(config, progress)
        parts["questions, prompts, tokens"] = time.perf_counter() - begun
        begun = time.perf_counter()
        run_id = answer(task, store, start_instant, progress, resume=None, command="bench").run_id
        parts["matching and storing"] = time.perf_counter() - begun
        begun = time.perf_counter()
        run_report(store, run_id)
        parts["report"] = time.perf_counter() - begun
    n = len(task.prompts)
    generation = n / options.requests_per_s
    outside = sum(parts.values())
    lines = [
        "# What an evaluation costs beside generation",
        "",
        f"{n} questions; generation at {options.requests_per_s:.1f} requests/s takes {generation:.0f} s; "
        f"{device_name()}.",
        "",
        "| part | s | share of the wall time |",
        "|---|---|---|",
        *(f"| {name} | {s:.2f} | {100 * s / (generation + outside):.2f} % |" for name, s in parts.items()),
        f"| all | {outside:.2f} | {100 * outside / (generation + outside):.2f} % |",
    ]
    text = "\n".join(lines) + "\n"
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
