"""What a swap of an adapter takes on GPUs: bytes moved, and seconds, by where the base's weights are kept."""

from __future__ import annotations

from dataclasses import dataclass

from morfi.checkpoints.base_room import AT_ONCE, Room, room_for, working_bytes
from morfi.planning.rates import BANDWIDTH_SHARE, GB, LINK_SHARE, READ, Gpu
from morfi.planning.shape import Shape

UTILIZATION = 0.92  # of a GPU's memory, which vLLM takes unless it is told otherwise (gpu_memory_utilization)
_BESIDE = int(1.5e9)  # bytes of a GPU that vLLM does not count: CUDA's context, and graphs
_ADAPTER_BYTES = 4  # of a number in an adapter's file: PEFT saves float32


@dataclass(frozen=True, slots=True)
class Swap:
    """A swap on each GPU: the base's bytes that it `reads`, where from, and the bytes that memory moves."""

    room: Room
    reads: int
    moves: int
    seconds: float

    @property
    def says(self) -> str:
        """A sentence for a plan."""
        return (
            f"a swap merges an adapter in place in {self.seconds:.2g} s: it reads {self.reads / GB:.1f} GB "
            f"of the base, kept {self.room}, and moves {self.moves / GB:.0f} GB in the GPU's memory"
        )


def moved_bytes(numbers: int, number_bytes: int) -> int:
    """The bytes that a merge of a base in `number_bytes` reads and writes on the device.

    B A is written, scaled, and the base added, in float32; the result is rounded, summed to see whether it is
    finite, and copied.
    """
    product, scaled, added = 4, 8, 8 + number_bytes
    rounded, summed, copied = 4 + number_bytes, number_bytes, 2 * number_bytes
    return numbers * (product + scaled + added + rounded + summed + copied)


def swap_on(
    room: Room | None,
    gpu: Gpu,
    shape: Shape,
    *,
    number_bytes: int,
    rank: int,
    targets: tuple[str, ...],
    n_gpus: int = 1,
    utilization: float = UTILIZATION,
    host: int | None = None,
) -> Swap:
    """A swap of an adapter on each of `n_gpus`, with the base in `room`: None is where the engine keeps it.

    `host` bytes of memory are free; without it, enough.
    """
    chosen = shape.targeted(targets)
    numbers = sum(one.n * one.d_in * one.d_out for one in chosen) // n_gpus
    sizes = [one.d_in * one.d_out // n_gpus for one in chosen for _ in range(one.n)]
    reads = number_bytes * numbers
    if room is None:
        free = max(0, int((1 - utilization) * gpu.memory) - _BESIDE)
        have = 4 * number_bytes * shape.n_parameters if host is None else host // n_gpus
        working = working_bytes(min(AT_ONCE, max(sizes, default=0)))
        room = room_for([number_bytes * size for size in sizes], working, device=free, host=have)
    moves = moved_bytes(numbers, number_bytes)
    seconds = moves / (BANDWIDTH_SHARE * gpu.bandwidth)
    seconds += _ADAPTER_BYTES * shape.lora_parameters(rank, targets) / READ
    if room == Room.PINNED:
        seconds += reads / (LINK_SHARE * gpu.link)
    elif room == Room.FILES:
        seconds += reads / READ
    return Swap(room, reads, moves, seconds)
