"""Seconds a checkpoint: `morfi sweep` beside a new process for each checkpoint, and beside lm-eval.

Claim: one live engine that swaps weights is faster than starting one for each checkpoint, and a sweep spends
under 10 % of its time outside generation, once its engine runs. Every side answers the same test questions
0-shot with the checkpoints of one train run; the sweep asks Unknown training questions besides, so times are
given for 200 answers. Of the sides that start anew for each checkpoint only some are run, and say so.
Writes bench/results/sweep.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from morfi.checkpoints import resolve
from morfi.device import device_name
from morfi.runs.provenance import versions
from morfi.store import Store

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "sweep.md"
MORFI = [sys.executable, "-m", "morfi"]
N = 200


def run(command: list[str], job: dict[str, Any] | None = None) -> tuple[dict[str, Any], float]:
    """The JSON that `command` prints and the seconds of its process."""
    environment = os.environ | {"PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    began = time.perf_counter()
    done = subprocess.run(
        command, input=json.dumps(job or {}), capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout), time.perf_counter() - began


def sweep_side(db: Path, train_run: str, figure: Path) -> dict[str, float]:
    """The time of a sweep of all checkpoints, in seconds per 200 answers of one checkpoint."""
    # A seed of its own, or a sweep finds its answers in the store. Greedy answers do not depend on it.
    fresh = ["--new", "--seed", str(time.time_ns() % 2**31)]
    command = [*MORFI, "sweep", "--ckpts", train_run, "--limit", str(N), *fresh, "--json"]
    report, process_s = run([*command, "--db", str(db), "--figure", str(figure)])
    store = Store(db)
    rows = store.sweep(report["run_id"])
    summary = store.summary(report["run_id"])
    answers = summary.n_requests / N
    return {
        "checkpoints": len(rows),
        "process": process_s / answers,
        "generation": summary.generate_s / answers,
        "load": sum(row.load_s for row in rows) / len(rows),
        "outside": 100 * (1 - summary.generate_s / process_s),
        "outside_running": 100 * (1 - summary.generate_s / running_s(store, report["run_id"])),
        "answers": summary.n_requests,
    }


def running_s(store: Store, run_id: str) -> float:
    """Seconds from the engine being ready to the last row being stored."""
    times = store.query(
        "SELECT epoch(ended_at - started_at) AS s FROM attempt JOIN attempt_end USING (run_id, attempt) "
        f"WHERE run_id = '{run_id}'"
    )
    return float(sum(times.column("s").to_pylist()))


def restart_side(paths: list[str], data: Path, folder: Path) -> dict[str, float]:
    """The time of `morfi eval` for one checkpoint and 200 answers, a process for each of `paths`."""
    seconds, generation = [], []
    for number, path in enumerate(paths):
        command = [*MORFI, "eval", "--ckpt", path, "--data", str(data), "--shots", "0", "--json"]
        report, process_s = run([*command, "--db", str(folder / f"{number}.duckdb")])
        seconds.append(process_s * N / report["n"])
        generation.append(report["n"] / report["requests_per_s"] * N / report["n"])
    return {"process": sum(seconds) / len(seconds), "generation": sum(generation) / len(generation)}


def lm_eval_side(python: Path, path: str, rows: list[dict[str, Any]]) -> dict[str, float]:
    """The time of lm-eval for one checkpoint and 200 answers, its merged directory being there."""
    job = {
        "model": str(resolve(path).model_dir),
        "prompts": [row["prompt"] for row in rows],
        "answers": [row["answers"][0] for row in rows],
        "max_tokens": 16,
    }
    found, process_s = run([str(python), str(HERE / "sides/lm_eval_vllm.py")], job)
    return {"process": process_s * N / len(rows), "generation": found["generate_s"] * N / len(rows)}


def main() -> None:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", type=Path, required=True, help="database of the train run")
    parser.add_argument("--train", required=True, help="the train run, best with 14 checkpoints")
    parser.add_argument("--restarts", type=int, default=3, help="checkpoints for the side of `morfi eval`")
    parser.add_argument("--lm-eval-python", type=Path, help="python of an environment with lm-eval")
    options = parser.parse_args()
    store = Store(options.db)
    checkpoints = store.checkpoints(store.run(options.train).run_id)
    sides: list[tuple[str, str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep = sweep_side(options.db, options.train, folder / "figure")
        sides.append(("`morfi sweep`, one engine", f"{sweep['checkpoints']:.0f}", sweep))
        base = next(run for run in store.runs(1000) if run.kind == "sweep-eval")
        rows = [
            r
            for r in store.samples(base.run_id).to_pylist()
            if r["question_id"] in _test_ids(store, base.run_id)
        ]
        data = folder / "questions.jsonl"
        data.write_text("".join(f"{json.dumps(_question(row))}\n" for row in rows))
        paths = [row.path for row in checkpoints[:: max(1, len(checkpoints) // options.restarts)]]
        paths = paths[: options.restarts]
        sides.append(("`morfi eval`, a process each", f"{len(paths)}", restart_side(paths, data, folder)))
        if options.lm_eval_python is not None:
            lm_eval = lm_eval_side(options.lm_eval_python, paths[0], rows)
            sides.append(("`lm-eval --model vllm`, a process each", "1", lm_eval))
    text = table(sides)
    RESULTS.write_text(text)
    print(text)


def _test_ids(store: Store, run_id: str) -> set[str]:
    found = store.query(f"SELECT question_id FROM asked WHERE run_id = '{run_id}' AND split = 'test'")
    return set(found.column("question_id").to_pylist())


def _question(row: dict[str, Any]) -> dict[str, Any]:
    wanted = {"id": "question_id", "relation": "relation", "subject": "subject", "question": "question"}
    return {key: row[column] for key, column in wanted.items()} | {"answers": row["answers"]}


def table(sides: list[tuple[str, str, dict[str, float]]]) -> str:
    """The results as Markdown."""
    ours = sides[0][2]
    lines = [
        "# Seconds a checkpoint",
        "",
        f"{N} answers of each checkpoint, 0-shot, SmolLM2-135M with LoRA adapters; {device_name()}. Whole "
        "processes are timed, from the command to its exit.",
        "",
        "| side | checkpoints run | seconds a checkpoint | of them generation | sweep is |",
        "|---|---|---|---|---|",
    ]
    for name, n, side in sides:
        lines.append(
            f"| {name} | {n} | {side['process']:.1f} | {side['generation']:.1f} | "
            f"{side['process'] / ours['process']:.1f}x |"
        )
    lines += [
        "",
        f"The sweep: {ours['answers']:.0f} answers; loading a checkpoint (files checked, adapter merged, "
        f"weights swapped) {ours['load']:.2f} s on average. Outside generation: "
        f"{ours['outside_running']:.1f} % of the time from the engine's start to the last row stored, "
        f"{ours['outside']:.1f} % of the whole process's, imports and engine start included.",
        "",
        ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
