"""Seconds and memory of `find_trends`, beside the straightforward way and beside the bare matrix product.

Its method is "bootstrap", with one row for "page".

Claims: at least 50 times as fast as the straightforward way (SAELens encodes, the [n_questions, d_sae]
activations are kept, NumPy resamples, SciPy's kendalltau and spearmanr for every latent and resample), at
most twice the time of x @ W_enc alone for all conditions, and memory that grows with neither the questions
nor the conditions. All sides get the same inputs: a random SAELens SAE whose latents fire on about 1 % of
the questions, and conditions that drift along one direction beside a noise of their own. SciPy's time is
extrapolated from a sample of series. `find_trends` and the bare product take turns in one process; memory
is the most that a process of its own takes above its inputs. Writes bench/results/trends.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from morfi.device import device_name
from morfi.latents.sae import from_sae_lens
from morfi.latents.selection import Criteria
from morfi.latents.trends import TrendResult, find_trends
from morfi.runs.provenance import versions

RESULTS = Path(__file__).resolve().parent / "results" / "trends.md"
D_MODEL, D_SAE, N_RESAMPLES = 576, 9216, 1000
LEVELS = (0, 10, 25, 50, 75, 90, 100)
SIZES = ((2000, 1), (8000, 1), (2000, 2), (8000, 2))  # questions, trainings a level
DRIFT, NOISE = 0.01, 0.01  # of a condition, in standard deviations of the questions
N_SAMPLED = 400  # series that SciPy is timed on


def make_inputs(n_questions: int, n_seeds: int) -> tuple[Any, list[torch.Tensor], list[float]]:
    """A SAELens SAE, the conditions' activations and their levels."""
    from sae_lens import StandardSAE, StandardSAEConfig

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    sae = StandardSAE(StandardSAEConfig(d_in=D_MODEL, d_sae=D_SAE))
    with torch.no_grad():
        sae.W_enc.copy_(normal(D_MODEL, D_SAE) / D_MODEL**0.5)
        sae.b_enc.fill_(-2.33)  # above it lies 1 % of a normal distribution
        sae.b_dec.copy_(normal(D_MODEL) * 0.1)
    questions, direction = normal(n_questions, D_MODEL), normal(D_MODEL)
    activations, levels = [], []
    for _ in range(n_seeds):
        for step, level in enumerate(LEVELS):
            x = normal(n_questions, D_MODEL).mul_(0.02).add_(questions)
            activations.append(x.add_(direction * step * DRIFT + normal(D_MODEL) * NOISE))
            levels.append(float(level))
    return sae, activations, levels


def seconds(call: Callable[[], Any]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def kib(name: str) -> int:
    """VmRSS, the memory of this process, or VmHWM, the most it was."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise SystemExit(f"/proc/self/status has no {name}")


class Memory:
    """The most memory that was taken since, in MiB."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
        self._before = kib("VmRSS")

    def mib(self) -> float:
        return (kib("VmHWM") - self._before) / 1024


def time_ours(rounds: int) -> dict[str, Any]:
    """`find_trends` and the bare product, in turns."""
    sae, activations, levels = make_inputs(2000, 1)
    encoder = from_sae_lens(sae, "random").encoder

    def ours(**settings: Any) -> TrendResult:
        settings = {"method": "bootstrap", **settings}
        return find_trends(activations, levels, encoder, n_resamples=N_RESAMPLES, **settings)

    product = torch.empty(2000, D_SAE)  # taken once: fresh memory would cost the bare product as much again
    ways: dict[str, Callable[[], Any]] = {
        "bare": lambda: [torch.mm(x, encoder.W_enc, out=product) for x in activations],
        "ours": ours,
        "every": lambda: ours(criteria=Criteria(alpha=1.0)),
        "page": lambda: ours(method="page"),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, call in ways.items():
            once = seconds(call)
            if number:  # the first warms up
                taken[name].append(once)
    table = ours().latents
    every = ours(criteria=Criteria(alpha=1.0)).latents
    return {
        "seconds": taken,
        "rho": table["rho"].to_pylist(),
        "n_candidates": D_SAE - table["stability"].null_count,
        "n_firing": D_SAE - every["stability"].null_count,
        "n_selected": sum(table["selected"].to_pylist()),
        "zeros": 1 - sum(float((x @ encoder.W_enc > 2.33).float().mean()) for x in activations) / 7,
    }


def ours_memory(n_questions: int, n_seeds: int) -> dict[str, Any]:
    """Memory of `find_trends` at one size."""
    sae, activations, levels = make_inputs(n_questions, n_seeds)
    encoder = from_sae_lens(sae, "random").encoder
    memory = Memory()
    find_trends(activations, levels, encoder, method="bootstrap", n_resamples=N_RESAMPLES)
    return {"mib": memory.mib()}


def bare_memory() -> dict[str, Any]:
    """Memory of the bare product of one condition after the other."""
    sae, activations, _ = make_inputs(2000, 1)
    memory = Memory()
    for x in activations:
        x @ sae.W_enc
    return {"mib": memory.mib()}


def straightforward() -> dict[str, Any]:
    """Encoding and resampling as a whole, SciPy on a sample of series."""
    import numpy as np
    import scipy.stats

    sae, activations, levels = make_inputs(2000, 1)
    memory = Memory()
    taken: dict[str, float] = {}
    with torch.no_grad():
        began = time.perf_counter()
        latents = [sae.encode(x).numpy() for x in activations]
        taken["encode"] = time.perf_counter() - began
    began = time.perf_counter()
    n, draw = len(latents[0]), np.random.default_rng(0)
    counts = draw.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES).astype(np.float32)
    means = np.stack([counts @ one for one in latents]) / n  # [C, B, F]
    taken["resample"] = time.perf_counter() - began
    full = np.stack([one.mean(0, dtype=np.float64) for one in latents])
    fires = np.max([(one > 0).mean(0) for one in latents], axis=0) >= 0.01
    chosen = draw.choice(np.flatnonzero(fires), N_SAMPLED)
    series = [means[:, draw.integers(N_RESAMPLES), latent] for latent in chosen]
    scipy.stats.kendalltau(levels, series[0])
    scipy.stats.spearmanr(levels, series[0])
    began = time.perf_counter()
    for one in series:
        scipy.stats.kendalltau(levels, one)
        scipy.stats.spearmanr(levels, one)
    taken["series"] = (time.perf_counter() - began) / N_SAMPLED
    rho = {int(latent): scipy.stats.spearmanr(levels, full[:, latent]).statistic for latent in chosen}
    return {"seconds": taken, "rho": rho, "mib": memory.mib()}


def child(side: str, *arguments: int) -> dict[str, Any]:
    """The result of a side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, *map(str, arguments)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, env=os.environ | {"PYTHONWARNINGS": "ignore"}
    )
    print(f"{side} {arguments}", file=sys.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


SIDES: dict[str, Callable[..., dict[str, Any]]] = {
    "time": time_ours,
    "memory": ours_memory,
    "bare": bare_memory,
    "straightforward": straightforward,
}


def check(ours: list[float], theirs: dict[str, float]) -> None:
    """Stops unless rho of the sampled latents is SciPy's on SAELens' latents."""
    for latent, rho in theirs.items():
        if abs(ours[int(latent)] - rho) > 1e-4:
            raise SystemExit(f"latent {latent} has rho {ours[int(latent)]}, the straightforward way {rho}")


def report(
    ours: dict[str, Any], slow: dict[str, Any], memory: dict[tuple[int, int], float], bare: float
) -> str:
    """The results as Markdown."""
    middle = {name: statistics.median(taken) for name, taken in ours["seconds"].items()}
    bare_s, fixed = middle["bare"], slow["seconds"]["encode"] + slow["seconds"]["resample"]
    a_series, n_candidates = slow["seconds"]["series"], ours["n_candidates"]
    all_series = fixed + a_series * D_SAE * (1 + N_RESAMPLES)
    few_series = fixed + a_series * (D_SAE + n_candidates * N_RESAMPLES)

    def row(name: str, taken: float, spread: list[float] | None = None) -> str:
        between = f" ({min(spread):.2f} - {max(spread):.2f})" if spread else ""
        return f"| {name} | {taken:,.2f}{between} | {taken / bare_s:,.2f} | {taken / middle['ours']:,.1f} |"

    names = {
        "bare": "x @ W_enc alone, all conditions",
        "ours": "find_trends",
        "page": 'find_trends, method "page"',
        "every": f"find_trends, alpha 1: all {ours['n_firing']} latents that fire are resampled",
    }
    lines = [
        "# Finding trends",
        "",
        f"d_model {D_MODEL}, d_sae {D_SAE}, {100 * ours['zeros']:.1f} % zeros, 2,000 questions, 7 levels, "
        f"{N_RESAMPLES} resamples, float32; {device_name()}, {torch.get_num_threads()} threads. Medians of "
        f"{len(ours['seconds']['ours'])} rounds in turn, with the lowest and highest. {n_candidates} latents "
        "have a trend in the full sample that may be selected, and only those are resampled; "
        f"{ours['n_selected']} are selected.",
        "",
        "| | s | times the bare product | times find_trends |",
        "|---|---|---|---|",
        *(row(name, middle[key], ours["seconds"][key]) for key, name in names.items()),
        row("straightforward, every latent and resample", all_series),
        row(f"straightforward, resamples of the same {n_candidates} latents only", few_series),
        "",
        "Straightforward: SAELens encodes and all activations are kept "
        f"({slow['seconds']['encode']:.1f} s), NumPy resamples by a matrix product with the counts "
        f"({slow['seconds']['resample']:.1f} s), SciPy's kendalltau and spearmanr take "
        f"{1e6 * a_series:.0f} us a series: extrapolated from {N_SAMPLED} series of latents that fire. "
        "rho of those latents is the same both ways.",
        "",
        "| memory above the inputs | questions | conditions | MiB |",
        "|---|---|---|---|",
        *(f"| find_trends | {n} | {k * len(LEVELS)} | {mib:.0f} |" for (n, k), mib in memory.items()),
        f"| x @ W_enc, one condition at a time | 2000 | 7 | {bare:.0f} |",
        f"| straightforward | 2000 | 7 | {slow['mib']:.0f} |",
        "",
        "Of what find_trends takes, the counts of the resamples are "
        + " and ".join(f"{n * (1 + N_RESAMPLES) / 2**20:.0f} MiB at {n}" for n in (2000, 8000))
        + " questions.",
        "",
        ", ".join(f"{name} {version}" for name, version in versions().items())
        + f", scipy {importlib.metadata.version('scipy')}, sae-lens {importlib.metadata.version('sae-lens')}",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the tables and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("arguments", type=int, nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side](*options.arguments)))
        return
    ours, slow = child("time", options.rounds), child("straightforward")
    check(ours["rho"], slow["rho"])
    memory = {size: child("memory", *size)["mib"] for size in SIZES}
    text = report(ours, slow, memory, child("bare")["mib"])
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
