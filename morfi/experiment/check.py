"""What is wrong with the settings of an experiment, found before its first stage begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from morfi.checkpoints import resolve
from morfi.engine.residual_stream import ResidualStream, stream_of
from morfi.errors import FaultsError, InputError
from morfi.experiment.keys import as_keys
from morfi.experiment.stages import Settings, Stage, configured
from morfi.experiment.together import TOGETHER
from morfi.latents.sae import load_sae
from morfi.questions import load_questions
from morfi.terminal import Say


def check_settings(settings: Settings, stages: Sequence[Stage], say: Say) -> None:
    """Raises FaultsError for all that is wrong with the settings of `stages`.

    Every stage's options are taken as its command takes them; then what one says must fit the others: layers
    and an SAE the model, the epochs and the checkpoint that are named what is trained.
    """
    faults: list[str] = []
    made = _made(settings, stages, faults)
    named = {settings[stage.name].get("data"): stage.name for stage in reversed(stages)}
    for source, first in named.items():
        if source is not None:
            _note(faults, first, partial(_check_data, source))
    if not faults:
        _check_together(made, faults)
        _check_model(settings, {stage.name for stage in stages}, faults, say)
    if faults:
        raise FaultsError("the experiment", faults)


def check_values(settings: Settings, stages: Sequence[Stage]) -> None:
    """As `check_settings`, of the values alone: no question is read and no model looked for."""
    faults: list[str] = []
    made = _made(settings, stages, faults)
    if not faults:
        _check_together(made, faults)
    if faults:
        raise FaultsError("the experiment", faults)


def _made(settings: Settings, stages: Sequence[Stage], faults: list[str]) -> dict[str, Any]:
    """The configuration of each stage that has one; adds what is wrong with the others."""
    made: dict[str, Any] = {}
    for stage in stages:
        _note(faults, stage.name, partial(_make, stage, settings, made))
    return made


def _check_together(made: dict[str, Any], faults: list[str]) -> None:
    """Adds what one stage says that does not fit the others."""
    for name, look in TOGETHER.items():
        if name in made:
            _note(faults, name, partial(look, made[name], made))


def _note(faults: list[str], stage: str, look: Callable[[], Any]) -> None:
    """Adds what is wrong with a stage, if anything is."""
    try:
        look()
    except InputError as error:
        faults.append(f"[{stage.replace(' ', '.')}] {as_keys(str(error))}")


def _make(stage: Stage, settings: Settings, made: dict[str, Any]) -> None:
    made[stage.name] = configured(stage, settings)


def _check_data(source: str) -> None:
    """Raises InputError for questions that are not there, before a model is looked for or fetched."""
    try:
        load_questions(source)
    except InputError as error:
        raise InputError(f'{error} It is named by data = "PATH" in the file, or --set data=PATH') from error


def _check_model(settings: Settings, stages: set[str], faults: list[str], say: Say) -> None:
    """Adds what does not fit the model, where it is one that the experiment trains."""
    given = settings["split"]
    stream: ResidualStream | None = None
    if "split" in stages and given.get("endpoint") is None:
        try:
            base = resolve(given["ckpt"], base=given.get("base"), dtype=given.get("dtype"), say=say)
        except InputError as error:
            faults.append(f"[split] {as_keys(str(error))}")
            return
        stream = stream_of(base)
    layers = settings["capture"].get("layers") or ()
    listed = ", ".join(map(str, layers))
    if stream is not None and "capture" in stages:
        for layer in layers:
            _note(faults, "capture", partial(stream.check_layer, layer, "layers"))
    if "sae train" in stages and (layer := settings["sae train"].get("layer")) not in layers:
        faults.append(f"[sae.train] layer is {layer}; [capture] takes the layers {listed}")
    if "find" in stages and settings["find"].get("sae") is not None:
        _note(faults, "find", partial(_check_sae, settings, stream))


def _check_sae(settings: Settings, stream: ResidualStream | None) -> None:
    """Raises InputError for an SAE that is not there, or does not read what is captured."""
    named = settings["find"]["sae"]
    sae = load_sae(named)
    if stream is not None:
        stream.check_width(sae.encoder.d_model, f"sae {named}")
    layer, layers = settings["find"].get("layer", sae.layer), settings["capture"]["layers"]
    if layer is not None and layer not in layers:
        listed = ", ".join(map(str, layers))
        raise InputError(f"sae {named} reads after layer {layer}; [capture] takes the layers {listed}")
