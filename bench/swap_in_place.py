"""Seconds to merge an adapter into decoder layers of Llama 3.1 8B, in place and on the CPU.

Claim: where the weights lie on a GPU, a swap of all 32 layers takes less than two seconds with the base on
the device or in pinned memory, and the numbers are those of the CPU's merge within their tolerance. Random
weights in bfloat16, LoRA of rank 32 on all linear layers; all ways take turns on the same layers. "On the
CPU" is what vLLM's loader is given: merged with one thread, as vLLM leaves torch on a GPU, and with every
core, then copied to the device. On a machine without a GPU the device is the CPU, which shows nothing of
a GPU's speed; what a GPU would take is estimated from data sheets (morfi/planning/swaps.py). Writes
bench/results/swap_in_place.md, on a GPU swap_in_place_gpu.md.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from morfi.checkpoints.adapters import Adapter, Lora
from morfi.checkpoints.base_room import Room
from morfi.checkpoints.lora import Edit, Merge, merged_tensors
from morfi.checkpoints.weights import Weights, open_file, write_tensors
from morfi.device import device_name, is_gpu
from morfi.planning.rates import BANDWIDTH_SHARE, GPUS, LINK_SHARE, READ
from morfi.planning.shape import shape_of
from morfi.planning.swaps import moved_bytes, swap_on
from morfi.runs.provenance import versions
from morfi.serve.weights.in_place import InPlace
from morfi.serve.weights.places import Place, pieces_of

RESULTS = Path(__file__).resolve().parent / "results" / f"swap_in_place{'_gpu' if is_gpu() else ''}.md"
MODEL, LAYERS, RANK = "llama-3.1-8b", 32, 32
NO_GPU = (
    "There was no GPU: the rows show that every way gives the same numbers, and nothing of its speed on one."
)
SHAPES = {
    "q_proj": (4096, 4096),
    "k_proj": (1024, 4096),
    "v_proj": (1024, 4096),
    "o_proj": (4096, 4096),
    "gate_proj": (14336, 4096),
    "up_proj": (14336, 4096),
    "down_proj": (4096, 14336),
}


def make(folder: Path, n_layers: int) -> tuple[Weights, Merge]:
    """Layers in a file, and the merge of an adapter of each of their matrices."""
    draw = torch.Generator().manual_seed(0)
    base, held, edits = {}, {}, {}
    for layer in range(n_layers):
        for kind, (d_out, d_in) in SHAPES.items():
            name = f"model.layers.{layer}.{kind}"
            base[f"{name}.weight"] = (0.02 * torch.randn(d_out, d_in, generator=draw)).bfloat16()
            held[f"{name}.a"] = 0.02 * torch.randn(RANK, d_in, generator=draw)
            held[f"{name}.b"] = 0.01 * torch.randn(d_out, RANK, generator=draw)
            edits[f"{name}.weight"] = Edit(lora=Lora({"a": f"{name}.a", "b": f"{name}.b"}, 2.0))
    write_tensors(folder / "base.safetensors", base)
    adapter = Adapter(folder, {}, Weights({}, held))
    merge = Merge(adapter, "bfloat16", edits, None, "lm_head.weight", False, False, None)
    return open_file(folder / "base.safetensors"), merge


def ways(base: Weights, merge: Merge, device: torch.device) -> dict[str, Callable[[], None]]:
    """What is timed, by name; each leaves the merged weights in the same live tensors."""
    live = {name: tensor.to(device) for name, tensor in base.in_memory()}
    whole = {
        name: tuple(pieces_of(Place(tensor, tuple(slice(0, n) for n in tensor.shape))))
        for name, tensor in live.items()
    }

    def on_the_cpu(n_threads: int) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(n_threads)
        for name, tensor in merged_tensors(base, merge):
            live[name].copy_(tensor)
        torch.set_num_threads(before)

    found: dict[str, Callable[[], None]] = {
        "on the CPU, one thread": lambda: on_the_cpu(1),
        "on the CPU, every core": lambda: on_the_cpu(len(os.sched_getaffinity(0))),
    }
    for room in Room:
        found[f"in place, the base {room}"] = in_place(base, merge, whole, device, room)
    return found


def in_place(
    base: Weights,
    merge: Merge,
    places: Mapping[str, tuple[Place, ...]],
    device: torch.device,
    room: Room,
) -> Callable[[], None]:
    """A swap in place with the base in `room`."""
    kept = {}
    for name, tensor in base.in_memory() if room != Room.FILES else ():
        pinned = tensor.pin_memory() if room == Room.PINNED and device.type != "cpu" else tensor
        there = pinned.to(device) if room == Room.DEVICE else pinned
        kept[name] = [there[place.box] for place in places[name]]
    model = InPlace(base, places, device, n_workers=1, rooms=dict.fromkeys(places, room), kept=kept)

    names = list(places)
    model.swap(names, merge)
    found = model.compare(merge)
    if found is None or found.worst > 1:
        raise SystemExit(f"{room}: {found} lies outside of the tolerance")
    return lambda: model.swap(names, merge)


def table(seconds: Mapping[str, list[float]], n_layers: int, numbers: int) -> list[str]:
    """A row for each way, with its ratio to the first."""
    first = statistics.median(next(iter(seconds.values())))
    rows = ["| merge | s | of the first | x 32 layers, s |", "|---|---|---|---|"]
    for name, taken in seconds.items():
        median = statistics.median(taken)
        rows.append(
            f"| {name} | {median:.3f} ({min(taken):.3f} - {max(taken):.3f}) | {median / first:.2f} | "
            f"{median * LAYERS / n_layers:.2f} |"
        )
    moved = moved_bytes(numbers, 2) / 1e9
    return [*rows, "", f"In place: {2 * numbers / 1e9:.2f} GB of the base are read, {moved:.1f} GB moved."]


def estimates() -> list[str]:
    """What a swap of the whole model takes on each GPU, and where its base is kept."""
    shape, _ = shape_of(MODEL)
    on = functools.partial(swap_on, shape=shape, number_bytes=2, rank=RANK, targets=("all-linear",))
    rows = ["| GPU | device, s | pinned, s | files, s | kept, as vLLM is started |", "|---|---|---|---|---|"]
    for gpu in GPUS.values():
        each = [on(room, gpu) for room in Room]
        cells = " | ".join(f"{one.seconds:.2f}" for one in each)
        rows.append(f"| {gpu.name} | {cells} | {on(None, gpu).room} |")
    return [
        *rows,
        "",
        f"Estimated for {MODEL} in bfloat16: {each[0].reads / 1e9:.1f} GB of the base read and "
        f"{each[0].moves / 1e9:.0f} GB moved in the GPU's memory at {100 * BANDWIDTH_SHARE:.0f} % of its "
        f"bandwidth, pinned memory at {100 * LINK_SHARE:.0f} % of PCI Express, files and the adapter at "
        f"{READ / 1e9:g} GB/s. None of these shares was measured.",
    ]


def main() -> None:
    """Measures, prints the tables and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    numbers = options.layers * sum(d_out * d_in for d_out, d_in in SHAPES.values())
    with tempfile.TemporaryDirectory() as folder:
        timed = ways(*make(Path(folder), options.layers), device)
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        for _ in range(options.rounds):
            for name, way in timed.items():
                begun = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - begun)
    lines = [
        "# Merging where the weights are",
        "",
        f"{options.layers} of {LAYERS} layers of {MODEL}, bfloat16, LoRA of rank {RANK} on all of them, "
        f"on {device_name()}; {options.rounds} rounds in turn; medians, with the lowest and highest.",
        "",
        *table(seconds, options.layers, numbers),
        "",
        "" if device.type == "cuda" else f"{NO_GPU}\n",
        "## On a GPU, by data sheets",
        "",
        *estimates(),
        "",
        ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]
    text = "\n".join(lines) + "\n"
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
