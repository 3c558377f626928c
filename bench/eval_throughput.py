"""Answers per second: `morfi eval` beside vLLM tuned by hand and as it comes, transformers, and lm-eval.

Claim: at least 1.4x vLLM with the settings that morfi gives it, 3x transformers `generate` (bfloat16, its
best batch size), 3x vLLM with its defaults and 2x `lm-eval --model vllm`, on the same questions, with the
greedy answers of transformers in float32. Every side is a process of its
own; the sides take turns and the median of the rounds counts. Starting an engine is not counted.
Writes bench/results/eval_throughput.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from morfi.checkpoints import resolve
from morfi.device import device_name, serving_dtype
from morfi.runs.provenance import versions
from morfi.store import Store

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "eval_throughput.md"
RELATIONS = "P17,P36,P131"
MAX_TOKENS = 16
BATCH_SIZES = (16, 32, 64)
DEFAULTS = {"gpu_memory_utilization": 0.5}  # it wants 92 % of a NUMA node free, and does not start otherwise
# Blocks of 32 tokens, all cores and no compilation: what pays on a CPU for short answers.
TUNED = {"block_size": 32, "enforce_eager": True, "kv_cache_memory_bytes": 1 << 30}


@dataclass
class Side:
    """The result of one side: seconds of generation in each round, its answers and its largest process."""

    name: str
    seconds: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    peak_gb: float = 0.0

    @property
    def rate(self) -> float:
        """Requests per second in the median round."""
        return len(self.texts) / statistics.median(self.seconds)


def run(command: Sequence[str], job: dict[str, Any] | None = None) -> tuple[dict[str, Any], float]:
    """The JSON that `command` prints, and the peak resident memory of its largest process in GB."""
    environment = os.environ | {"PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        given.write(json.dumps(job or {}).encode())
        given.seek(0)
        process = subprocess.Popen(command, stdin=given, stdout=out, stderr=log, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        out.seek(0)
        log.seek(0)
        if status != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read().decode()[-4000:]}")
        return json.loads(out.read()), usage.ru_maxrss / 1e6


def run_morfi(folder: Path, n: int, *options: str) -> tuple[Side, list[dict[str, Any]]]:
    """One `morfi eval` of n questions, and its rows in the order of the questions' ids."""
    db = folder / f"{len(list(folder.iterdir()))}.duckdb"
    command = [sys.executable, "-m", "morfi", "eval", "--ckpt", "smollm2", "--relations", RELATIONS]
    report, peak_gb = run([*command, "--limit", str(n), "--db", str(db), "--json", *options])
    rows = Store(db).samples(report["run_id"]).to_pylist()
    seconds = len(rows) / report["requests_per_s"]
    return Side("morfi", [seconds], [row["text"] for row in rows], peak_gb), rows


def run_transformers(job: dict[str, Any], dtype: str, batch_size: int) -> tuple[dict[str, Any], float]:
    """One round of the transformers side."""
    side = [sys.executable, str(HERE / "sides/transformers_generate.py")]
    return run(side, job | {"dtype": dtype, "batch_size": batch_size})


def best_batch_size(job: dict[str, Any], dtype: str) -> int:
    """The batch size at which transformers is fastest on every third of the prompts."""
    pilot = job | {"prompts": job["prompts"][::3]}
    seconds = {size: run_transformers(pilot, dtype, size)[0]["generate_s"] for size in BATCH_SIZES}
    return min(seconds, key=lambda size: seconds[size])


def job_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The input with which the other sides answer the questions of `rows`."""
    return {
        "model": str(resolve("smollm2").model_dir),
        "prompts": [row["prompt"] for row in rows],
        "answers": [row["answers"][0] for row in rows],
        "max_tokens": MAX_TOKENS,
    }


def measure(folder: Path, n: int, rounds: int, lm_eval_python: Path | None) -> dict[str, Side]:
    """Every side's rounds on the same n questions."""
    sides: dict[str, Side] = {}

    def add(name: str, found: dict[str, Any], peak_gb: float) -> None:
        side = sides.setdefault(name, Side(name))
        side.seconds.append(found["generate_s"])
        side.texts = found["texts"]
        side.peak_gb = max(side.peak_gb, peak_gb)
        print(f"  {name}: {len(side.texts) / side.seconds[-1]:.1f} requests/s", file=sys.stderr, flush=True)

    job = job_of(run_morfi(folder, n)[1])
    dtype = serving_dtype("bfloat16")
    sizes = {each: best_batch_size(job, each) for each in ("bfloat16", "float32")}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        side, _ = run_morfi(folder, n)
        add("morfi eval", {"generate_s": side.seconds[0], "texts": side.texts}, side.peak_gb)
        for each, size in sizes.items():
            add(f"transformers {each}, batch {size}", *run_transformers(job, each, size))
        vllm = [sys.executable, str(HERE / "sides/vllm_alone.py")]
        tuned = {"settings": {**TUNED, "dtype": dtype}, "all_cores": True}
        add(f"vLLM, tuned, {dtype}", *run(vllm, job | tuned))
        add("vLLM, its defaults", *run(vllm, job | {"settings": DEFAULTS, "all_cores": False}))
        if lm_eval_python is not None:
            side_command = [str(lm_eval_python), str(HERE / "sides/lm_eval_vllm.py")]
            add("lm-eval --model vllm", *run(side_command, job))
    return sides


def agreement(folder: Path, n: int) -> list[str]:
    """How many of n float32 answers of morfi are those of transformers, and a line for each that is not."""
    _, rows = run_morfi(folder, n, "--dtype", "float32")
    found, _ = run_transformers(job_of(rows), "float32", 1)
    differing = [
        f"- {row['question_id']}: morfi {row['text']!r}, transformers {text!r}"
        for row, text in zip(rows, found["texts"], strict=True)
        if row["text"] != text
    ]
    equal = len(rows) - len(differing)
    return [
        f"Greedy answers in float32, morfi's against those of transformers one prompt at a time: {equal} of "
        f"{len(rows)} equal.",
        *differing,
    ]


def table(sides: dict[str, Side], n: int, rounds: int, agreed: list[str]) -> str:
    """The results as Markdown."""
    ours = sides["morfi eval"]
    lines = [
        "# Answers per second",
        "",
        f"{n} 4-shot questions of world-facts ({RELATIONS}), SmolLM2-135M, greedy, at most {MAX_TOKENS} "
        f"tokens; {device_name()}; {rounds} rounds in turn, the median counts.",
        "",
        "| side | requests/s | lowest and highest round | morfi is | peak memory, GB |",
        "|---|---|---|---|---|",
    ]
    for side in sides.values():
        rates = sorted(len(side.texts) / seconds for seconds in side.seconds)
        lines.append(
            f"| {side.name} | {side.rate:.1f} | {rates[0]:.1f} - {rates[-1]:.1f} | "
            f"{ours.rate / side.rate:.1f}x | {side.peak_gb:.1f} |"
        )
    lines += [
        "",
        *agreed,
        "",
        ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--n-agreement", type=int, default=300)
    parser.add_argument("--lm-eval-python", type=Path, help="python of an environment with lm-eval")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sides = measure(Path(folder), options.n, options.rounds, options.lm_eval_python)
        agreed = agreement(Path(folder), options.n_agreement)
    text = table(sides, options.n, options.rounds, agreed)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
