"""Host time that steering takes of a decode step on a GPU, by requests and by entries of each.

Claim: under 0.2 ms at 256 requests and 0.5 ms at 1,024 until the work of a step is handed to
the device, whatever the entries of each request. The classes of a worker in this process, without a model;
where there is no GPU, on CPU tensors: copies cost what they cost in memory, a launch costs nothing. With
--baseline the same of another checkout, in turns. Writes bench/results/steering_host.md, on a GPU
steering_host_gpu.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from morfi.device import device_name, is_gpu
from morfi.engine.directions import Direction, pack
from morfi.engine.steering import Steering, to_json
from morfi.kernels.expand import expand
from morfi.runs.provenance import versions
from morfi.serve.plugin.device_work import DeviceWork
from morfi.serve.plugin.step import ResidualState

RESULTS = Path(__file__).resolve().parent / "results" / f"steering_host{'_gpu' if is_gpu() else ''}.md"
N_LAYERS, D_MODEL, N_TOKENS, N_PROMPT, N_DIRECTIONS = 32, 64, 16384, 60, 64
CASES = [(n, entries) for n in (256, 1024) for entries in (1, 8)]
TARGETS_MS = {256: 0.2, 1024: 0.5}


def steered(n_requests: int, n_entries: int) -> tuple[ResidualState, list[str]]:
    """A worker's state with requests that are steered after every second layer in turn, and their ids."""
    device = torch.device("cuda" if is_gpu() else "cpu")
    prepare = expand if is_gpu() else lambda *_: None
    work = DeviceWork(N_LAYERS, N_TOKENS, D_MODEL, device, lambda *_: None, expand=prepare)
    state = ResidualState(range(N_LAYERS), D_MODEL, n_requests * 8, device, work)
    draw = torch.Generator().manual_seed(0)
    packed = {}
    for _ in range(N_DIRECTIONS):
        direction = Direction(torch.randn(D_MODEL, generator=draw))
        packed[direction.sha256] = pack(direction)
    names = list(packed)
    ids = [f"morfi-{number}-abcdef12" for number in range(n_requests)]
    for number, request_id in enumerate(ids):
        steering = [
            Steering(2 * j, names[(number + j) % N_DIRECTIONS], strength=1.0 + number)
            for j in range(n_entries)
        ]
        used = {str(one.direction): packed[str(one.direction)] for one in steering}
        ready = {**to_json(steering, None), "report": True, "shard": None, "directions": used}
        state.add(request_id, N_PROMPT, {"morfi": ready})
    return state, ids


def measure(n_requests: int, n_entries: int, n_steps: int) -> dict[str, list[float]]:
    """Milliseconds of each decode step: until its work is handed over, and all of it."""
    state, ids = steered(n_requests, n_entries)
    counts, input_ids = np.ones(n_requests, np.int32), torch.zeros(N_TOKENS)
    found: dict[str, list[float]] = {"begin": [], "step": []}
    for number in range(n_steps + 5):
        starts = np.full(n_requests, N_PROMPT + number, np.int32)
        first = time.perf_counter()
        state.idle()
        state.begin(ids, starts, counts)
        begun = time.perf_counter()
        do_work(state)
        again = time.perf_counter()
        state.end(input_ids)
        if number >= 5:
            found["begin"].append(1e3 * (begun - first))
            found["step"].append(1e3 * (begun - first + time.perf_counter() - again))
    return found


def do_work(state: ResidualState) -> None:
    """What the layers tell of a step in which all ran."""
    assert state.device_work is not None
    state.device_work.tables.ran.fill_(state.device_work.steps.mark)


def side(checkout: Path, n_steps: int) -> list[dict[str, list[float]]]:
    """The times of every case as the script in `checkout` measures them, in a process of its own."""
    python = checkout / ".venv/bin/python"
    command = [str(python if python.exists() else sys.executable), "-P", "bench/steering_host.py"]
    command += ["--side", "--steps", str(n_steps)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{checkout}: {done.stderr[-2000:]}")
    found: list[dict[str, list[float]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(sides: Sequence[str], times: Sequence[Sequence[dict[str, list[float]]]]) -> list[str]:
    """Rows of medians; `times` are those of each side and case."""
    head = ["requests", "entries each"]
    head += [f"{what}{one}, ms" for one in sides for what in ("until handed over", "all of the step")]
    lines = [f"| {' | '.join(head)} | target, ms |", "|" + "---|" * (len(head) + 1)]
    for number, (n_requests, n_entries) in enumerate(CASES):
        cells = [f"{n_requests:,}", str(n_entries)]
        for one in times:
            each = [one[number][key] for key in ("begin", "step")]
            cells += [f"{statistics.median(values):.2f} ({min(values):.2f})" for values in each]
        lines.append(f"| {' | '.join(cells)} | {TARGETS_MS[n_requests]} |")
    return lines


def main() -> None:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="of each case and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--baseline", type=Path, help="another checkout of morfi")
    parser.add_argument("--side", action="store_true", help="print this checkout's times as JSON, no more")
    options = parser.parse_args()
    if options.side:
        torch.set_num_threads(1)
        print(json.dumps([measure(*case, options.steps) for case in CASES]))
        return
    here = Path(__file__).resolve().parents[1]
    checkouts = [here] if options.baseline is None else [options.baseline.resolve(), here]
    sides = [""] if options.baseline is None else [" before", " after"]
    times: list[list[dict[str, list[float]]]] = [[{"begin": [], "step": []} for _ in CASES] for _ in sides]
    for _ in range(options.rounds):
        for one, checkout in zip(times, checkouts, strict=True):
            for mine, its in zip(one, side(checkout, options.steps), strict=True):
                for key, values in its.items():
                    mine[key] += values
    lines = [
        "# Host time of steering in a decode step",
        "",
        f"All requests steered at all positions, {N_LAYERS} layers, {N_DIRECTIONS} directions; "
        f"{device_name()}, one thread; {options.rounds} rounds of {options.steps} steps"
        f"{'' if options.baseline is None else ' a side, in turns'}; medians, with the lowest.",
        "",
        *table(sides, times),
        "",
        ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]
    text = "\n".join(lines) + "\n"
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
