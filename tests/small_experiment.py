"""An experiment on the tiny model, which `morfi run` ends in seconds with the fake engine."""

from __future__ import annotations

from pathlib import Path

# Every option that is given decides what its stage, and those that build on it, make.
_EXPERIMENT = """
ckpt = "{model}"
data = "{data}"
relations = "P17,P36"
layer = 1

[split]
n-ex = 1
shots = 2
samples = 2

[mix]
levels = [0, 50, 100]
size = 4

[train]
rank = 2
alpha = 4
lr = 0.01
batch = 2
warmup = 0
epochs = [1]
early-stop = false

[sae.train]
d-sae = 16
k = 2
tokens = 2000
batch = 64

[find]
force = true
resamples = 20

[steer]
limit = 4
alphas = [-1.0, 1.0]
"""


def write_experiment(path: Path, model: Path, data: Path) -> Path:
    """Writes the experiment's file; returns its path."""
    path.write_text(_EXPERIMENT.format(model=model, data=data))
    return path


def changed(*settings: str) -> list[str]:
    """The words that change settings of it, each "STAGE.OPTION=VALUE"."""
    return [word for one in settings for word in ("--set", one)]
