"""Examples per second of LoRA training: morfi beside TRL's SFTTrainer on the same questions.

Claim: at least 1.3x the same LoRA run with SFTTrainer at its defaults: rank, alpha, learning rate and batch
are given to it, bfloat16 and gradient checkpointing are its own. A third side gives it morfi's dtype and no
checkpointing. Every side is a process of its own, the sides take turns, and the median step of all rounds
counts, without the first of each process. Writes bench/results/train_throughput.md.
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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from morfi.checkpoints import resolve
from morfi.checkpoints.tokenizer import load_tokenizer
from morfi.device import device_name
from morfi.questions import load_questions, select
from morfi.questions.prompts import ASKED
from morfi.questions.question import Question
from morfi.runs.provenance import versions
from morfi.training import train_config
from morfi.training.examples import encode_examples

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "train_throughput.md"
MODEL = "smollm2"


@dataclass
class Side:
    """Seconds of each optimizer step but a process's first, and the loss of the last round."""

    name: str
    steps_s: list[float] = field(default_factory=list)
    loss: float = 0.0


def run(command: Sequence[str], job: dict[str, Any]) -> dict[str, Any]:
    """The JSON that `command` prints for `job`."""
    environment = os.environ | {"PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as log:
        done = subprocess.run(
            command,
            input=json.dumps(job).encode(),
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            check=False,
        )
        log.seek(0)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)} failed:\n{log.read().decode()[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(questions: Sequence[Question], rounds: int, trl_python: Path | None) -> list[Side]:
    """Every side's steps on one epoch of `questions` a round."""
    config = train_config({"model": MODEL})
    ours = {
        "questions": [asdict(question) for question in questions],
        "settings": {"model": MODEL, "epochs": [1]},
    }
    theirs = {
        "model": str(resolve(MODEL).model_dir),
        "examples": [
            {"prompt": ASKED.format(question=q.text), "completion": f" {q.answers[0]}\n"} for q in questions
        ],
        "epochs": 1,
        **{key: getattr(config, key) for key in ("rank", "alpha", "lr", "batch")},
    }
    jobs: list[tuple[str, list[str], dict[str, Any]]] = [
        ("morfi", [sys.executable, str(HERE / "sides/morfi_lora.py")], ours)
    ]
    if trl_python is not None:
        side = [str(trl_python), str(HERE / "sides/trl_sft.py")]
        jobs.append(("SFTTrainer, its defaults", side, {**theirs, "close": False}))
        jobs.append(("SFTTrainer, float32, no checkpointing", side, {**theirs, "close": True}))
    sides = [Side(name) for name, _, _ in jobs]
    for number in range(rounds):
        for measured, (_, command, job) in zip(sides, jobs, strict=True):
            found = run(command, job)
            measured.steps_s += found["steps_s"][1:]
            measured.loss = found["loss"]
            print(f"round {number + 1}, {measured.name}: {found['steps_s']}", file=sys.stderr, flush=True)
    return sides


def flops_per_example(questions: Sequence[Question]) -> float:
    """Floating-point operations that one example needs at least, without padding and attention scores.

    Frozen weights: 2 forward and 2 for the gradient of their input, a token. LoRA's: 2 more for their own
    gradient. The output head, at answer tokens only: 4.
    """
    from transformers import AutoConfig

    directory = resolve(MODEL).model_dir
    config = AutoConfig.from_pretrained(directory)
    examples = encode_examples(questions, load_tokenizer(directory), 4096)
    d, heads = config.hidden_size, config.head_dim * config.num_attention_heads
    kv, ffn = config.head_dim * config.num_key_value_heads, config.intermediate_size
    shapes = [(d, heads), (d, kv), (d, kv), (heads, d), (d, ffn), (d, ffn), (ffn, d)]
    frozen = config.num_hidden_layers * sum(n_in * n_out for n_in, n_out in shapes)
    rank = train_config({"model": MODEL}).rank
    lora = config.num_hidden_layers * sum(rank * (n_in + n_out) for n_in, n_out in shapes)
    n_tokens = sum(len(example.token_ids) - 1 for example in examples)
    n_targets = sum(example.n_targets for example in examples)
    total = n_tokens * (4 * frozen + 6 * lora) + n_targets * 4 * d * config.vocab_size
    return float(total / len(examples))


def table(sides: Sequence[Side], questions: Sequence[Question], rounds: int) -> str:
    """The results as Markdown."""
    batch = train_config({"model": MODEL}).batch
    ours, flops = statistics.median(sides[0].steps_s), flops_per_example(questions)
    lines = [
        "# Training examples per second",
        "",
        f"{len(questions)} questions of world-facts, SmolLM2-135M, LoRA of rank 32 on all linear layers, "
        f"batch {batch}; {device_name()}; {rounds} rounds in turn, the median step counts. An example needs "
        f"at least {flops / 1e9:.1f} GFLOP.",
        "",
        "| side | examples/s | fastest and slowest step | useful GFLOP/s | morfi is | mean loss |",
        "|---|---|---|---|---|---|",
    ]
    for side in sides:
        step = statistics.median(side.steps_s)
        lines.append(
            f"| {side.name} | {batch / step:.1f} | {batch / min(side.steps_s):.1f} - "
            f"{batch / max(side.steps_s):.1f} | {flops * batch / step / 1e9:.0f} | {step / ours:.1f}x | "
            f"{side.loss:.2f} |"
        )
    lines += ["", ", ".join(f"{name} {version}" for name, version in versions().items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trl-python", type=Path, help="python of an environment with TRL")
    options = parser.parse_args()
    questions = select(load_questions("world-facts").splits["train"], limit=options.n)
    sides = measure(questions, options.rounds, options.trl_python)
    text = table(sides, questions, options.rounds)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
