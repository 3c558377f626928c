"""Seconds to load a checkpoint into a live engine, beside starting an engine on the merged directory.

Claim: a swap, merge included, costs at most 10 % of a start, in process and as separate processes, and gives
the same logits bit for bit. SmolLM2 in the dtype it is served in here, two LoRA adapters of rank 32 on all
linear layers with random weights. Every engine is a process of its own; starts and swaps take turns. In one
process the import of vLLM is not counted, nor is the merged directory's making. Writes bench/results/swap.md.
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
from pathlib import Path
from typing import Any

from morfi.checkpoints import resolve
from morfi.device import device_name
from morfi.runs.provenance import versions

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "swap.md"
MODEL = "smollm2"
WAYS = {"in one process": "0", "as separate processes": "1"}


def make_adapter(directory: Path, seed: int) -> str:
    """A LoRA adapter of rank 32 whose B is as large as training makes it; returns its path."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(resolve(MODEL).model_dir, dtype=torch.float32)
    config = LoraConfig(r=32, lora_alpha=64, target_modules="all-linear", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    tuned.save_pretrained(directory)
    return str(directory)


def run(job: dict[str, Any], multiprocessing: str, cache: Path) -> dict[str, Any]:
    """The result of bench/sides/swap_engine.py for `job`."""
    environment = os.environ | {
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",
        "MORFI_CACHE": str(cache),
        "VLLM_ENABLE_V1_MULTIPROCESSING": multiprocessing,
    }
    command = [sys.executable, str(HERE / "sides/swap_engine.py")]
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


def measure(folder: Path, rounds: int, swaps: int, dtype: str) -> tuple[list[str], str]:
    """A row of the table for each way to run vLLM, and what became of the logits."""
    base = resolve(MODEL)
    adapters = [make_adapter(folder / f"adapter-{seed}", seed) for seed in range(2)]
    job = {"base": str(base.model_dir), "dtype": dtype, "swaps": swaps}
    rows, n_equal, n_compared = [], 0, 0
    for way, multiprocessing in WAYS.items():
        starts: list[float] = []
        taken: list[float] = []
        for number in range(rounds):
            merged = []
            for ckpt in adapters:
                found = run({**job, "ckpt": ckpt, "adapters": []}, multiprocessing, folder / "cache")
                starts.append(found["start_s"])
                merged += found["logits"]
            live = run({**job, "adapters": adapters}, multiprocessing, folder / "cache")
            taken += live["swaps_s"]
            n_compared += len(merged)
            n_equal += sum(a == b for a, b in zip(live["logits"], merged, strict=True))
            print(f"{way}, round {number + 1}: {starts[-1]:.2f} s, {taken[-1]:.3f} s", file=sys.stderr)
        rows.append(row(way, starts, taken))
    if n_equal != n_compared:
        raise SystemExit(f"only {n_equal} of {n_compared} swapped checkpoints gave the merged one's logits")
    return (
        rows,
        f"Logits of a swapped checkpoint equal to the merged one's, bit for bit: {n_equal} of {n_compared}.",
    )


def row(way: str, starts: Sequence[float], swaps: Sequence[float]) -> str:
    """The medians of one way to run vLLM, with the lowest and the highest."""
    start, swap = statistics.median(starts), statistics.median(swaps)
    return (
        f"| {way} | {start:.2f} ({min(starts):.2f} - {max(starts):.2f}) | {swap:.3f} "
        f"({min(swaps):.3f} - {max(swaps):.3f}) | {100 * swap / start:.1f} % |"
    )


def main() -> None:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--swaps", type=int, default=10, help="of each engine")
    options = parser.parse_args()
    dtype = resolve(MODEL).dtype
    with tempfile.TemporaryDirectory() as folder:
        rows, agreed = measure(Path(folder), options.rounds, options.swaps, dtype)
    lines = [
        "# A swap beside a start",
        "",
        f"SmolLM2-135M in {dtype}, LoRA of rank 32 on all linear layers; {device_name()}; {options.rounds} "
        "rounds in turn; medians, with the lowest and highest.",
        "",
        "| engine | start on the merged directory, s | swap, merge included, s | a swap costs |",
        "|---|---|---|---|",
        *rows,
        "",
        agreed,
        "",
        ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]
    text = "\n".join(lines) + "\n"
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
