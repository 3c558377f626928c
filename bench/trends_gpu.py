"""Times of both ways to encode on a GPU, beside the bare product and the roofline, after they prove correct.

First every kernel is compared with its reference on the GPU, twice for equal bits, and `find_trends` with the
CPU's. Then sides take turns at every width, number of latents and density: cuBLAS' product alone, the fused
kernel, and cuBLAS with one pass that compacts. The table says which way is faster beside what the rule in
morfi/kernels/encode.py says, and below it stands the claim that at d_model 4,096, 5,000 questions, 7
conditions and 1,000 resamples in bf16 the products alone are at least 80 % of `find_trends`. Writes
bench/results/trends_gpu.md. `--small` only tries the script itself, on a GPU or in Triton's interpreter, and
writes nothing.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import triton
from torch.profiler import ProfilerActivity, profile

from morfi.device import device_name
from morfi.kernels import compaction, encode_fused, encode_library, trend_triton
from morfi.kernels.encode import is_fused_faster, row_limits
from morfi.kernels.encoder import ACTIVATIONS, Encoder, Nonzeros, Way, encode_reference, tiles
from morfi.kernels.null import trend_null
from morfi.kernels.page import page_reference
from morfi.kernels.resample import resample_counts
from morfi.kernels.trend_reference import trend_reference
from morfi.latents.trend_inputs import ON_GPU
from morfi.latents.trends import find_trends
from morfi.runs.provenance import versions

RESULTS = Path(__file__).resolve().parent / "results" / "trends_gpu.md"
LEVELS = (0, 10, 25, 50, 75, 90, 100)
RARE = 3.0  # standard deviations: 0.13 % of the activations are above
# Dense bf16 operations and bytes per second, data sheets.
PEAKS = {"A100": (312e12, 2.04e12), "H100": (989e12, 3.35e12), "H200": (989e12, 4.8e12)}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Size:
    """Of one measurement."""

    d_model: int
    d_sae: int
    n: int
    resamples: int


WIDTHS = (576, 2304, 3584, 4096)
D_SAES = (16_384, 32_768, 65_536, 131_072)
DENSITIES = (0.0005, 0.0015, 0.005, 0.02)
SIZES = tuple(Size(d_model, d_sae, 5000, 1000) for d_model in WIDTHS for d_sae in D_SAES)
WHOLE = (Size(4096, 32_768, 5000, 1000), Size(4096, 131_072, 5000, 1000))
ALONE = (Size(576, 32_768, 5000, 0), Size(4096, 32_768, 5000, 0))
SMALL = (Size(64, 96, 40, 20),)
WAYS: dict[Way, ModuleType] = {"fused": encode_fused, "library": encode_library}
BARE = "bare"
# By part of their names.
KERNELS = {"fused product": "encode_kernel", "cuBLAS": "nvjet", "pass": "compact_kernel"}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """float32, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_encoder(activation: str, d_model: int, d_sae: int, dtype: torch.dtype, device: str) -> Encoder:
    """An SAE whose latents fire rarely."""
    settings: dict[str, dict[str, Any]] = {
        "jumprelu": {"threshold": torch.full((d_sae,), 0.1)},
        "topk": {"k": max(1, d_sae // 300)},
        "gated": {"r_mag": normal(d_sae, seed=2) * 0.1, "b_mag": torch.full((d_sae,), -RARE)},
    }
    weights = (normal(d_model, d_sae, seed=1) / d_model**0.5).to(dtype)
    return Encoder(weights, torch.full((d_sae,), -RARE), activation, **settings.get(activation, {})).to(
        device
    )


def check_kernels(device: str, shapes: Sequence[tuple[int, int, int]]) -> None:
    """Stops unless every kernel equals its reference, and gives the same bits twice."""
    # The interpreter multiplies the bits of bfloat16 as integers.
    dtypes = DTYPES if device == "cuda" else (torch.float32, torch.float16)
    for activation, dtype, (n, d_model, d_sae), way in itertools.product(ACTIVATIONS, dtypes, shapes, WAYS):
        case = f"{way} {activation} {dtype} {(n, d_model, d_sae)}"
        encoder = make_encoder(activation, d_model, d_sae, dtype, device)
        x, latents = normal(n, d_model, seed=3).to(device, dtype), slice(0, d_sae)
        limits = row_limits(x, replace(encoder, way=None if device == "cpu" else way), d_sae)
        launch = WAYS[way].launch
        one, other = (compaction.start_tile(launch, x, encoder, latents, limits)() for _ in range(2))
        for name in ("starts", "questions", "values"):
            if not torch.equal(getattr(one, name), getattr(other, name)):
                raise SystemExit(f"{case}: two runs differ in {name}")
        found = torch.zeros(d_sae, n, device=device)
        latent = torch.arange(d_sae, device=device).repeat_interleave(one.starts.diff())
        found[latent, one.questions] = one.values
        # A value next to its threshold may be kept by one side alone.
        close = torch.isclose(found.T, encode_reference(x, encoder), rtol=1e-3, atol=1e-3)
        if int((~close).sum()) > close.numel() // 1000:
            raise SystemExit(f"{case}: {int((~close).sum())} differ")
        counts = resample_counts([0] * n, 70, 0, device)[:, 1:]
        sums = trend_triton.resampled_sums(one, counts)
        torch.testing.assert_close(sums.double(), found.double() @ counts.double(), rtol=1e-5, atol=1e-4)


def check_trends(device: str) -> None:
    """Stops unless trends and Page's test are those of their references."""
    for ranks, high in itertools.product(
        (tuple(range(7)), tuple(range(10)), (0, 0, 1, 1, 2, 2, 2)), (3, 1000)
    ):
        null, generator = trend_null(ranks), torch.Generator().manual_seed(0)
        means = torch.randint(0, high, (len(ranks), 6, 301), generator=generator).float()
        found, expected = (
            trend_triton.reduce_trends(means.to(device), null, 0.05),
            trend_reference(means, null, 0.05),
        )
        for name in ("s", "a1", "a2", "stability", "rho", "mean_abs_rho"):
            torch.testing.assert_close(
                getattr(found, name).cpu(), getattr(expected, name), rtol=1e-5, atol=1e-5
            )
        numerator, _ = trend_triton.page_blocks(means[:, 0].to(device), null.midranks)
        page = page_reference(means[:, :1].transpose(1, 2), null)
        mean = 301 * len(ranks) * (len(ranks) + 1) ** 2 / 4
        torch.testing.assert_close(numerator.double().sum().cpu() + mean, page.L[0])


def make_conditions(size: Size, dtype: torch.dtype) -> list[torch.Tensor]:
    """Residual streams of the conditions, which drift along one direction."""
    questions, direction = normal(size.n, size.d_model, seed=4), normal(size.d_model, seed=5)
    return [
        (questions + 0.02 * normal(size.n, size.d_model, seed=10 + step) + 0.05 * step * direction).to(dtype)
        for step in range(len(LEVELS))
    ]


def check_whole(device: str, size: Size) -> None:
    """Stops unless `find_trends` says the same on the GPU as on the CPU."""
    activations = make_conditions(size, torch.float32)
    on_cpu, on_device = (
        find_trends(
            activations,
            LEVELS,
            make_encoder("relu", size.d_model, size.d_sae, torch.float32, where),
            method="bootstrap",
            n_resamples=size.resamples,
            device=where,
        ).latents
        for where in ("cpu", device)
    )
    differing = sum(
        one != other
        for name in ("s", "selected")
        for one, other in zip(on_cpu[name].to_pylist(), on_device[name].to_pylist(), strict=True)
    )
    if differing > max(1, size.d_sae // 500):  # a value next to its threshold, or means that nearly tie
        raise SystemExit(f"find_trends differs from the CPU's in {differing} of {2 * size.d_sae} cells")


def seconds(call: Callable[[], Any], device: str) -> float:
    """How long it takes, until the device has done it."""
    if device == "cpu":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    stop: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    call()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop)) / 1000


def encode_all(way: Way, x: torch.Tensor, encoder: Encoder) -> list[Nonzeros]:
    """All latents by a way, each tile started before the last is waited for, as `find_trends` does it."""
    parts, ends = tiles(encoder, ON_GPU.encoded), []
    found = []
    for latents in parts:
        ends.append(compaction.start_tile(WAYS[way].launch, x, encoder, latents))
        if len(ends) > 1:
            found.append(ends.pop(0)())
    return found + [end() for end in ends]


def in_turns(sides: dict[str, Callable[[], Any]], device: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of every side, in turns, after two rounds to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 2):
        for name, call in sides.items():
            once = seconds(call, device)
            if number >= 2:
                taken[name].append(once)
    return taken


def drawn(size: Size, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and residual streams, in bfloat16; in float16 for the interpreter, which lacks bfloat16."""
    draw = torch.Generator(device).manual_seed(1)
    shape = size.d_model, size.d_sae
    weights = torch.randn(shape, generator=draw, device=device, dtype=torch.float16) / size.d_model**0.5
    x = torch.randn(size.n, size.d_model, generator=draw, device=device, dtype=torch.float16)
    return (weights, x) if device == "cpu" else (weights.bfloat16(), x.bfloat16())


def firing(weights: torch.Tensor, density: float) -> Encoder:
    """An SAE that keeps this share of its pre-activations."""
    bias = -statistics.NormalDist().inv_cdf(1 - density)
    return Encoder(weights, torch.full((weights.shape[1],), bias, device=weights.device))


def measure(size: Size, device: str, rounds: int, peaks: tuple[float, float] | None) -> Iterator[str]:
    """A line of the table for each density at a size."""
    weights, x = drawn(size, device)
    for density in DENSITIES:
        encoder = firing(weights, density)
        kept = {way: sum(len(one.values) for one in encode_all(way, x, encoder)) for way in WAYS}
        if abs(kept["fused"] - kept["library"]) > 2 + kept["library"] // 1000:
            raise SystemExit(f"{size}: the ways keep {kept} latents")
        sides: dict[str, Callable[[], Any]] = {BARE: lambda: x @ weights}
        sides |= {way: functools.partial(encode_all, way, x, encoder) for way in WAYS}
        taken = in_turns(sides, device, rounds)
        middle = {name: statistics.median(times) for name, times in taken.items()}
        cells = [f"{1e3 * middle[name]:.2f} ({1e3 * min(taken[name]):.2f})" for name in sides]
        cells += [share(bound(size, kept["fused"], peaks), middle[name]) for name in sides]
        by_rule = is_fused_faster(size.d_model, weights.dtype, kept["fused"] / (size.n * size.d_sae))
        cells += ["fused" if middle["fused"] < middle["library"] else "library"]
        cells += ["fused" if by_rule else "library"]
        yield f"| {size.d_model:,} | {size.d_sae:,} | {100 * density:g} % | {' | '.join(cells)} |"


def bound(size: Size, n_kept: int, peaks: tuple[float, float] | None) -> float | None:
    """The least seconds that encoding to non-zeros takes: its operations, or its bytes once."""
    if peaks is None:
        return None
    operations = 2 * size.n * size.d_model * size.d_sae
    n_bytes = 2 * size.d_model * (size.d_sae + size.n) + 8 * n_kept
    return max(operations / peaks[0], n_bytes / peaks[1])


def share(part: float | None, whole: float) -> str:
    """A part of a whole in percent."""
    return "-" if part is None else f"{100 * part / whole:.0f} %"


def kernels_alone(size: Size, repeats: int = 5) -> Iterator[str]:
    """A line for each way: milliseconds of its kernels on the GPU, without what the host takes."""
    weights, x = drawn(size, "cuda")
    encoder = firing(weights, DENSITIES[1])
    for way in WAYS:
        encode_all(way, x, encoder)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            for _ in range(repeats):
                encode_all(way, x, encoder)
            torch.cuda.synchronize()
        taken = dict.fromkeys((*KERNELS, "ordering"), 0.0)
        for event in profiled.key_averages():
            if event.device_type.name == "CUDA":
                kind = next((kind for kind, name in KERNELS.items() if name in event.key), "ordering")
                taken[kind] += event.self_device_time_total / 1000 / repeats
        cells = (f"{value:.3f}" if value else "-" for value in taken.values())
        yield f"| {size.d_model:,} | {way} | {' | '.join(cells)} |"


def measure_whole(size: Size, device: str, rounds: int) -> str:
    """A sentence on all of `find_trends` at a size."""
    activations = [x.to(device) for x in make_conditions(size, torch.bfloat16)]
    encoder = make_encoder("relu", size.d_model, size.d_sae, torch.bfloat16, device)
    settings: dict[str, Any] = {"n_resamples": size.resamples, "device": device}
    sides: dict[str, Callable[[], Any]] = {
        BARE: lambda: [x @ encoder.W_enc[:, part] for x in activations for part in tiles(encoder, 32_768)],
        "bootstrap": lambda: find_trends(activations, LEVELS, encoder, method="bootstrap", **settings),
        "page": lambda: find_trends(activations, LEVELS, encoder, method="page", device=device),
    }
    taken = {name: statistics.median(times) for name, times in in_turns(sides, device, rounds).items()}
    found = " and ".join(
        f'{1e3 * taken[name]:.1f} ms with the method "{name}" (products {share(taken[BARE], taken[name])})'
        for name in ("bootstrap", "page")
    )
    return (
        f"`find_trends` of {len(LEVELS)} conditions at d_model {size.d_model:,} and d_sae {size.d_sae:,}, "
        f"{size.resamples:,} resamples: {found}; the products alone {1e3 * taken[BARE]:.1f} ms."
    )


def report(rows: Sequence[str], alone: Sequence[str], whole: Sequence[str], n: int) -> str:
    """The results as Markdown."""
    head = ["d_model", "d_sae", "kept", "product alone ms", "fused ms", "library ms"]
    head += ["product: share of the roofline", "fused", "library", "faster", "by the rule"]
    lines = [
        "# Encoding and finding trends on a GPU",
        "",
        f"{device_name()}; bf16, {n:,} questions. All kernels equal their references on this device and "
        "give the same bits twice. Medians of rounds in turn, with the lowest.",
        "",
        f"| {' | '.join(head)} |",
        "|" + "---|" * len(head),
        *rows,
        "",
        f"Milliseconds of the kernels alone, {100 * DENSITIES[1]:g} % kept of 32,768 latents; ordering is "
        "what sorts what was kept and finds where each latent's begin:",
        "",
        f"| d_model | way | {' | '.join((*KERNELS, 'ordering'))} |",
        "|" + "---|" * (len(KERNELS) + 3),
        *alone,
        "",
        *(line for sentence in whole for line in (sentence, "")),
        ", ".join(f"{name} {one}" for name, one in versions().items()) + f", triton {triton.__version__}",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Checks, measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--small", action="store_true", help="try the script itself")
    options = parser.parse_args()
    if not (torch.cuda.is_available() or options.small):
        raise SystemExit("no GPU here; --small with TRITON_INTERPRET=1 tries the script")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    small, sizes = SMALL[0], SMALL if options.small else SIZES
    check_kernels(
        device, [(37, 24, 77)] if options.small else [(37, 24, 77), (300, 576, 1000), (513, 4096, 4096)]
    )
    check_trends(device)
    check_whole(device, small if options.small else Size(576, 4608, 1000, 200))
    print("every kernel is right")
    peaks = next((peak for name, peak in PEAKS.items() if name in device_name()), None)
    rounds = 1 if options.small else options.rounds
    rows = [row for size in sizes for row in measure(size, device, rounds, peaks)]
    whole = [measure_whole(size, device, rounds) for size in (SMALL if options.small else WHOLE)]
    alone = [] if device == "cpu" else [row for size in ALONE for row in kernels_alone(size)]
    text = report(rows, alone, whole, sizes[0].n)
    if not options.small:
        RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
