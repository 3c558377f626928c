"""A whole experiment, its commands one after the other: `morfi run`."""

from morfi.experiment.run import Outcome, run_experiment
from morfi.experiment.stages import STAGES, Settings, Stage, stages_of

__all__ = ["STAGES", "Outcome", "Settings", "Stage", "run_experiment", "stages_of"]
