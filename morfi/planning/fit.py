"""What cannot fit a machine, and what would."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from morfi.planning.cost import Cost, Setup, memory_of
from morfi.planning.rates import GB, GPUS, Gpu, Rates
from morfi.planning.shape import Shape
from morfi.planning.work import Work

_USABLE = 0.9  # of a GPU's memory, which is what vLLM takes; the rest is lost to its driver and to pieces
_MOST_GPUS = 8


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine that is planned for; memory and disk in bytes, None where they are not known.

    `notes` say where the rates come from; `is_measured` whether they were measured here.
    """

    name: str
    rates: Rates | None
    gpu: Gpu | None
    is_gpu: bool
    dtype: str = "bfloat16"  # in which a model is served, unless it is told otherwise
    host: int | None = None
    disk: int | None = None
    notes: tuple[str, ...] = ()
    is_measured: bool = False


def faults_of(
    left: Sequence[tuple[Work, Cost]], shape: Shape, setup: Setup, machine: Machine
) -> Iterator[str]:
    """A sentence for each thing that the stages that are `left` need and the machine has not."""
    if machine.gpu is not None:
        for work, cost in left:
            if cost.gpu > _USABLE * machine.gpu.memory:
                yield _too_large(work, cost.gpu, shape, setup, machine.gpu)
    if machine.host is not None:
        for work, cost in left:
            if cost.host > machine.host:
                yield (
                    f"{work.stage} needs {_gb(cost.host)} of memory, and {_gb(machine.host)} are free: "
                    f"{_smaller(work, setup)}or take a machine with more"
                )
    needed = most_disk([cost for _, cost in left])
    if machine.disk is not None and needed > machine.disk:
        yield (
            f"the stages write {_gb(needed)}, and {_gb(machine.disk)} are free: make room, or keep fewer "
            "epochs, layers or texts"
        )


def most_disk(costs: Iterable[Cost]) -> int:
    """The bytes on the disk when they are most: what stays of the stages before, and what one needs."""
    kept = most = 0
    for cost in costs:
        most = max(most, kept + cost.disk + cost.passing)
        kept += cost.disk
    return most


def _too_large(work: Work, needed: int, shape: Shape, setup: Setup, gpu: Gpu) -> str:
    said = [*_ways(work, shape, setup, gpu)]
    larger = [one for one in GPUS.values() if needed <= _USABLE * one.memory]
    if larger:
        smallest = min(one.memory for one in larger)
        said.append(" or ".join(one.name for one in larger if one.memory == smallest))
    ways = f": what fits is {', or '.join(said)}" if said else "; nothing that is known here fits"
    return (
        f"{work.stage} needs {_gb(needed)} of GPU memory, and {gpu.name} has {_gb(gpu.memory)}, of which "
        f"{_gb(int(_USABLE * gpu.memory))} can be used{ways}"
    )


def _ways(work: Work, shape: Shape, setup: Setup, gpu: Gpu) -> Iterator[str]:
    """What would make a stage fit the GPU, the cheapest first."""
    room = _USABLE * gpu.memory
    if work.training is not None:
        part = work.training.largest_part
        for share in (2, 4, 8, 16, 32):
            if share > setup.micro_batch:
                break
            targets = work.training.largest_targets // share
            smaller = replace(work.training, largest_part=part // share, largest_targets=targets)
            if memory_of(replace(work, training=smaller), shape, setup)[0] <= room:
                yield f"micro-batch = {setup.micro_batch // share}"
                break
        if not setup.checkpointing:
            again = replace(setup, checkpointing=True)
            if memory_of(work, shape, again)[0] <= room:
                yield "gradient-checkpointing = true"
    elif work.starts:
        for n in range(2 * setup.n_gpus, _MOST_GPUS + 1, setup.n_gpus):
            if memory_of(work, shape, replace(setup, n_gpus=n))[0] <= room:
                yield f'engine = ["tensor_parallel_size={n}"] on {n} of them'
                break


def _smaller(work: Work, setup: Setup) -> str:
    if work.training is None:
        return ""
    return "give a smaller micro-batch, " + ("" if setup.checkpointing else "gradient-checkpointing = true, ")


def _gb(n: int) -> str:
    return f"{n / GB:,.1f} GB"
