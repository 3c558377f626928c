"""The plan of an experiment for this machine or another, with what the store holds of it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from morfi.checkpoints.checkpoint import folder_here
from morfi.engine.protocol import StartEngine
from morfi.experiment import Outcome, Settings, run_experiment
from morfi.experiment.run import TakeOptions
from morfi.planning.calibration import Calibration, keep
from morfi.planning.machine import gpu_machine, this_machine
from morfi.planning.plan import Plan, plan_experiment
from morfi.planning.subject import configs_of, n_gpus_of, sized_for
from morfi.questions import load_questions
from morfi.terminal import Progress

if TYPE_CHECKING:
    from morfi.store import Store

_SMALL, _RELATION = "smollm2", "P17"  # what is measured on, where nothing else is named


def outlook(
    settings: Settings,
    store: Store,
    start_engine: StartEngine,
    progress: Progress,
    *,
    take: TakeOptions,
    gpu: str | None,
) -> Plan:
    """What the experiment of `settings` takes on a `gpu` of this name, else on this machine.

    What the store holds of it counts as done, where its model is here. `take` as of `run_experiment`. Raises
    InputError for settings that cannot be, and for a GPU that is not known.
    """
    taken = {name: take(given) for name, given in settings.items()}
    n_gpus = n_gpus_of(configs_of(taken))
    folder = store.path.absolute().parent
    machine = this_machine(folder, n_gpus) if gpu is None else gpu_machine(gpu, n_gpus)
    if gpu is not None:
        settings = sized_for(settings, gpu=True)
    standing = _standing(settings, store, start_engine, take) if _is_here(settings) else []
    return plan_experiment(sized_for(taken, gpu=machine.is_gpu), standing, machine, store, progress)


def measured_here(settings: Settings, start_engine: StartEngine, progress: Progress) -> Calibration:
    """The rates of this machine, measured and kept: on the model of `settings`, without any on SmolLM2.

    Raises InputError where the model is not here, or cannot be trained or served.
    """
    from morfi.planning.measure import calibrate

    ckpt = settings.get("split", {}).get("ckpt") or _SMALL
    found = calibrate(ckpt, load_questions("world-facts"), _RELATION, start_engine, progress)
    keep(found)
    return found


def _is_here(settings: Settings) -> bool:
    """Whether the weights of the model are on this machine, or checkpoints of one's own are asked."""
    ckpt = settings["split"].get("ckpt")
    if ckpt is None:
        return settings["capture"].get("ckpts") is not None
    folder = folder_here(ckpt)
    return folder is not None and any(folder.glob("*.safetensors"))


def _standing(
    settings: Settings, store: Store, start_engine: StartEngine, take: TakeOptions
) -> list[Outcome]:
    """How each stage stands; nothing is run."""
    quiet = _Quiet()
    return list(
        run_experiment(
            settings,
            store,
            start_engine,
            lambda: contextlib.nullcontext(quiet),
            command="",
            take=take,
            dry=True,
        )
    )


class _Quiet:
    """A progress that tells nobody."""

    def phase(self, text: str) -> None:
        """Nothing."""

    def start(self, n_total: int, n_done: int, unit: str) -> None:
        """Nothing."""

    def advance(self, n: int) -> None:
        """Nothing."""
