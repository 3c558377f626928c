"""The plan of an experiment: what each of its stages takes, and whether the machine has it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from morfi.experiment import Settings
from morfi.experiment.run import DONE
from morfi.planning.cost import Cost, Setup, cost_of
from morfi.planning.counts import SHARED, Counter
from morfi.planning.fit import Machine, faults_of
from morfi.planning.subject import Subject, n_gpus_of, subject_of, utilization_of
from morfi.planning.swaps import swap_on
from morfi.planning.work import Work
from morfi.terminal import Progress

if TYPE_CHECKING:
    from morfi.experiment import Outcome
    from morfi.store import Store

_CPU_BLOCK, _GPU_BLOCK = 32, 16  # tokens of a block of vLLM's prefix cache
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Planned:
    """A stage: how it stands, its work, and what that takes where it is not done.

    `state` is that of `morfi run --dry-run`, None where the model is not here to say it.
    """

    state: str | None
    work: Work
    cost: Cost

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return self.state == DONE


@dataclass(frozen=True, slots=True)
class Plan:
    """What an experiment takes on `machine`; `faults` say what cannot be, and what would."""

    machine: Machine
    stages: tuple[Planned, ...]
    assumptions: tuple[str, ...]
    faults: tuple[str, ...]

    @property
    def left(self) -> list[Planned]:
        """The stages that are not done."""
        return [one for one in self.stages if not one.is_done]

    @property
    def total_s(self) -> float | None:
        """The seconds of the stages that are not done; None where no rates are known."""
        found = [one.cost.total_s for one in self.left]
        known = [seconds for seconds in found if seconds is not None]
        return sum(known) if len(known) == len(found) else None


def plan_experiment(
    settings: Settings, outcomes: Iterable[Outcome], machine: Machine, store: Store, progress: Progress
) -> Plan:
    """What every stage of `settings` takes on `machine`; `outcomes` say how they stand, where it is known.

    Raises InputError for settings that no stage can have, and for a model whose sizes are not known.
    """
    standing = {one.stage: one for one in outcomes}
    split = standing.get("split")
    split_run = split.result if split is not None and split.state == DONE else None
    subject = subject_of(settings, split_run, store, progress)
    setup = setup_of(subject, machine)
    planned = [
        Planned(
            standing[work.stage].state if work.stage in standing else None,
            work,
            cost_of(work, subject.shape, setup, machine.rates),
        )
        for work in works_of(subject, progress, is_gpu=machine.is_gpu)
    ]
    left = [(one.work, one.cost) for one in planned if not one.is_done]
    in_place = () if setup.swap is None else (setup.swap.says,)
    shared = () if machine.is_gpu else (SHARED,)
    return Plan(
        machine,
        tuple(planned),
        (*machine.notes, *in_place, *subject.notes, *shared),
        tuple(faults_of(left, subject.shape, setup, machine)),
    )


def works_of(subject: Subject, progress: Progress, *, is_gpu: bool) -> list[Work]:
    """The work of every stage of the experiment, in order."""
    configs, facts = subject.configs, subject.facts
    counter = Counter(
        configs,
        subject.shape,
        subject.encoder,
        block=_GPU_BLOCK if is_gpu else _CPU_BLOCK,
        shares_layers=not is_gpu,
    )
    progress.phase("counting tokens")
    found = []
    if configs.split is not None:
        found += [counter.split(subject.data, progress), counter.mix(), counter.train(facts)]
    found += [counter.sweep(facts), counter.capture(facts)]
    if configs.sae is not None:
        found.append(counter.sae_train(subject.data))
    return [*found, counter.find(facts, subject.d_sae), counter.steer(facts)]


def setup_of(subject: Subject, machine: Machine) -> Setup:
    """How the model is held on the machine."""
    configs = subject.configs
    dtype = configs.capture.dtype or (configs.split.dtype if configs.split is not None else None)
    train = configs.train
    held = Setup(
        number_bytes=_BYTES[dtype or machine.dtype],
        gpu=machine.is_gpu,
        n_gpus=n_gpus_of(configs),
    )
    if train is None:
        return held
    held = replace(held, rank=train.rank, targets=train.targets, checkpointing=train.gradient_checkpointing)
    if machine.gpu is None or machine.is_measured:
        return held
    swap = swap_on(
        None,
        machine.gpu,
        subject.shape,
        number_bytes=held.number_bytes,
        rank=held.rank,
        targets=held.targets,
        n_gpus=held.n_gpus,
        utilization=utilization_of(configs),
        host=machine.host,
    )
    return replace(held, swap=swap)
