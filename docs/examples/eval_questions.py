"""Asks a checkpoint the questions of a JSON lines file, and prints its answers from the store.

A line is {"id": "1", "relation": "P17", "subject": "Lyon", "question": "Which country is Lyon in?",
"answers": ["France"]}.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from morfi import Store, start_engine
from morfi.evaluation.config import EvalConfig
from morfi.evaluation.evaluate import run_evaluation
from morfi.terminal import TerminalProgress


def main() -> None:
    """Evaluates, then reads the run's rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("questions", help="a file of questions")
    parser.add_argument("--ckpt", default="smollm2", help="a preset, a folder, a LoRA adapter or a hub id")
    parser.add_argument("--db", type=Path, default=Path("morfi.duckdb"))
    options = parser.parse_args()

    store = Store(options.db)
    config = EvalConfig(options.ckpt, data=options.questions, shots=0)
    with TerminalProgress() as progress:
        run_id = run_evaluation(config, store, start_engine, progress, resume=None, command="example")
    rows = store.samples(run_id).to_pylist()
    for row in rows:
        print("right" if row["correct"] else "wrong", row["question"], row["answer"], sep="\t")
    print(f"{sum(row['correct'] for row in rows)} of {len(rows)} are right; run {run_id}")


if __name__ == "__main__":
    main()
