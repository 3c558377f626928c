"""Seconds of the Triton kernels of trends on a GPU, beside cuBLAS and the roofline, after they prove correct.

Claim: at d_model 4,096, d_sae 32,768 and 131,072, 5,000 questions, 7 conditions, 1,000 resamples in bf16,
the cuBLAS time of the encode products alone is at least 80 % of `find_trends`'. First every kernel is
compared with its reference on the GPU, twice for equal bits, and `find_trends` with the CPU's. Then sides
take turns: cuBLAS, the fused kernel, cuBLAS with a float32 workspace and torch's nonzero (the rival), and
all of `find_trends`. Writes bench/results/trends_gpu.md. `--small` only tries the script itself, on a GPU or
in Triton's interpreter, and writes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from morfi.device import device_name
from morfi.kernels import compaction, encode_fused, trend_triton
from morfi.kernels.encode import row_limits
from morfi.kernels.encoder import ACTIVATIONS, Encoder, encode_reference
from morfi.kernels.null import trend_null
from morfi.kernels.page import page_reference
from morfi.kernels.resample import resample_counts
from morfi.kernels.trend_reference import trend_reference
from morfi.latents.trends import find_trends
from morfi.runs.provenance import versions

RESULTS = Path(__file__).resolve().parent / "results" / "trends_gpu.md"
LEVELS = (0, 10, 25, 50, 75, 90, 100)
RARE = 3.0  # standard deviations: 0.13 % of the activations are above
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}  # dense bf16 operations per second, data sheets
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Size:
    """Of one measurement."""

    d_model: int
    d_sae: int
    n: int
    resamples: int


SIZES = (Size(4096, 32_768, 5000, 1000), Size(4096, 131_072, 5000, 1000))
SMALL = (Size(64, 96, 40, 20),)


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
    for activation, dtype, (n, d_model, d_sae) in itertools.product(ACTIVATIONS, dtypes, shapes):
        encoder = make_encoder(activation, d_model, d_sae, dtype, device)
        x, latents = normal(n, d_model, seed=3).to(device, dtype), slice(0, d_sae)
        limits = row_limits(x, encoder, d_sae)
        one, other = (
            compaction.start_tile(encode_fused.launch, x, encoder, latents, limits)() for _ in range(2)
        )
        for name in ("starts", "questions", "values"):
            if not torch.equal(getattr(one, name), getattr(other, name)):
                raise SystemExit(f"{activation} {dtype} {(n, d_model, d_sae)}: two runs differ in {name}")
        found = torch.zeros(d_sae, n, device=device)
        latent = torch.arange(d_sae, device=device).repeat_interleave(one.starts.diff())
        found[latent, one.questions] = one.values
        # A value next to its threshold may be kept by one side alone.
        close = torch.isclose(found.T, encode_reference(x, encoder), rtol=1e-3, atol=1e-3)
        if int((~close).sum()) > close.numel() // 1000:
            raise SystemExit(f"{activation} {dtype} {(n, d_model, d_sae)}: {int((~close).sum())} differ")
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


def measure(size: Size, device: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of every side, in turns, after two rounds to warm up."""
    activations = [x.to(device) for x in make_conditions(size, torch.bfloat16)]
    encoder = make_encoder("relu", size.d_model, size.d_sae, torch.bfloat16, device)
    parts = [slice(at, min(at + 32_768, size.d_sae)) for at in range(0, size.d_sae, 32_768)]

    def fused() -> None:
        last = None
        for x, latents in itertools.product(activations, parts):
            started = compaction.start_tile(encode_fused.launch, x, encoder, latents)
            if last is not None:
                last()
            last = started
        assert last is not None
        last()

    def rival() -> None:
        for x, latents in itertools.product(activations, parts):
            pre = torch.mm(encoder.W_enc[:, latents].T, x.T, out_dtype=torch.float32)
            keep = pre > -encoder.b_enc[latents, None]
            latent, _ = keep.nonzero(as_tuple=True)
            pre[keep] + encoder.b_enc[latents][latent]

    sides: dict[str, Callable[[], Any]] = {
        "cuBLAS, the products alone": lambda: [
            x @ encoder.W_enc[:, part] for x in activations for part in parts
        ],
        "encoded to non-zeros, fused": fused,
        "find_trends": lambda: find_trends(
            activations, LEVELS, encoder, method="bootstrap", n_resamples=size.resamples, device=device
        ),
        'find_trends, method "page"': lambda: find_trends(
            activations, LEVELS, encoder, method="page", device=device
        ),
    }
    if device != "cpu":
        sides["encoded to non-zeros, cuBLAS to a float32 workspace and torch"] = rival
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 2):
        for name, call in sides.items():
            once = seconds(call, device)
            if number >= 2:
                taken[name].append(once)
    return taken


def report(found: dict[Size, dict[str, list[float]]], peak: float | None) -> str:
    """The results as Markdown."""
    lines = [
        "# Finding trends on a GPU",
        "",
        f"{device_name()}; bf16, {len(LEVELS)} conditions. All kernels equal their references on this "
        "device and give the same bits twice. Medians of rounds in turn, with the lowest and highest.",
    ]
    for size, taken in found.items():
        bare = statistics.median(taken["cuBLAS, the products alone"])
        floor = None if peak is None else 2 * size.n * size.d_model * size.d_sae * len(LEVELS) / peak
        lines += [
            "",
            f"d_model {size.d_model:,}, d_sae {size.d_sae:,}, {size.n:,} questions, {size.resamples:,} "
            "resamples",
            "",
            "| | ms | cuBLAS' share of it | share of the roofline |",
            "|---|---|---|---|",
        ]
        for name, times in taken.items():
            middle = statistics.median(times)
            spread = f"{1e3 * middle:.2f} ({1e3 * min(times):.2f} - {1e3 * max(times):.2f})"
            share = "-" if floor is None else f"{100 * floor / middle:.0f} %"
            lines.append(f"| {name} | {spread} | {100 * bare / middle:.0f} % | {share} |")
    lines += [
        "",
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
    peaks = [peak for name, peak in PEAKS.items() if name in device_name()]
    found = {size: measure(size, device, 1 if options.small else options.rounds) for size in sizes}
    text = report(found, peaks[0] if peaks else None)
    if not options.small:
        RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
