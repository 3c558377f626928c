"""The file of an experiment: a table of options for each stage, and before them what several stages share."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Collection, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import click

from morfi.command.config_file import read_toml, written
from morfi.command.settings import Configured, taken
from morfi.errors import InputError, nearest
from morfi.experiment import STAGES, Settings, Stage, stages_of

_PRESETS = resources.files("morfi.experiment") / "presets"
# Options before the first table, and the stages that take them; "own" are those of checkpoints of one's own.
_OWN = ("sweep", "capture")
_SHARED: Mapping[str, tuple[str, ...]] = {
    "ckpt": ("split", "sae train"),
    "base": ("split",),
    "bos": ("split",),
    "data": ("split", "sae train"),
    "relations": ("split",),
    "ckpts": ("sweep", "capture", "sae train"),
    "layer": ("sae train", "find", "capture"),
    "dtype": ("split", "train", "sweep", "capture", "sae train", "steer"),
    "engine": ("split", "sweep", "capture", "sae train", "steer"),
    "match": ("split", "train", "sweep", "steer"),
    "seed": ("split", "mix", "sweep", "capture", "sae train", "find", "steer"),
}
_NEVER = ("db", "verbose", "json", "config", "write-config", "new", "show-prompts", "figure", "engines")

Tables = dict[str, Any]  # as TOML has them
Keys = tuple[str, ...]  # the names of tables, and of a key in the last


def presets() -> list[str]:
    """The names of the experiments that come with morfi; NAME-fast is the short form of NAME."""
    return sorted(one.name.removesuffix(".toml") for one in _PRESETS.iterdir() if one.name.endswith(".toml"))


def open_experiment(file: Path | None, preset: str | None, *, fast: bool) -> tuple[Tables, str]:
    """The tables of the experiment that a file holds or a preset is, and its name for messages.

    Raises InputError where neither or both are given, and for a preset that there is not.
    """
    if file is not None and preset is not None:
        raise InputError(f"{file} and --preset {preset} are two experiments; give one of them")
    if file is None and preset is None:
        raise InputError(f"give the TOML file of an experiment, or --preset: {', '.join(presets())}")
    if file is not None:
        if fast:
            raise InputError("--fast belongs to --preset; leave it out, or lower the numbers in the file")
        return read_toml(file), str(file)
    name = f"{preset}-fast" if fast else str(preset)
    if name not in presets():
        raise InputError(
            f'there is no experiment "{name}"; there are {", ".join(presets())}.{nearest(name, presets())}'
        )
    return tomllib.loads((_PRESETS / f"{name}.toml").read_text(encoding="utf-8")), f"--preset {name}"


def asked_for(
    file: Path | None, given: Mapping[str, Any], commands: click.Group
) -> dict[str, dict[str, Any]]:
    """The options of each stage of the experiment that a command was `given` (`experiment_options`)."""
    tables, where = open_experiment(file, given["preset"], fast=given["fast"])
    short = {"relations": given["relations"], "train.seeds": given["seeds"]}
    changes = [f"{key}={value}" for key, value in short.items() if value is not None]
    changes += given["changes"]
    changed = with_changes(tables, changes)
    found = settings_of(changed, commands, f"{where} with --set" if changes else where)
    _refuse_overridden(changed, [_path_of(change)[0] for change in changes], where)
    return found


def with_changes(tables: Tables, changes: Iterable[str]) -> Tables:
    """The experiment with each KEY=VALUE of `changes`, such as train.epochs=1,3 or data=my.jsonl.

    Raises InputError for one that is none, and for one that replaces what another gave.
    """
    changed = copy.deepcopy(tables)
    earlier: list[Keys] = []
    for change in changes:
        path, text = _path_of(change)
        if replaced := [".".join(one) for one in earlier if one[: len(path)] == path]:
            raise InputError(
                f"--set {'.'.join(path)} takes the place of {replaced[0]}, which another option gives; give "
                "one of them"
            )
        earlier.append(path)
        into: Any = changed
        for name in path[:-1]:
            into = into.setdefault(name, {})
            if not isinstance(into, dict):
                raise InputError(f'--set {".".join(path)}: "{name}" is an option, and holds no others')
        into[path[-1]] = _value(text)
    return changed


def _path_of(change: str) -> tuple[Keys, str]:
    """The names in KEY of a KEY=VALUE, and VALUE; raises InputError where it is none."""
    path, equals, text = change.partition("=")
    if not equals or not path.strip():
        raise InputError(f'--set is "{change}"; expected STAGE.OPTION=VALUE, such as train.epochs=1,3')
    return tuple(path.strip().replace("sae train", "sae.train").split(".")), text


def _refuse_overridden(tables: Tables, paths: Collection[Keys], where: str) -> None:
    """Raises InputError for a shared option of `paths` that the file's own table of a stage overrides."""
    own = _own_tables(tables, where)
    for key in (path[0] for path in paths if len(path) == 1 and path[0] in _SHARED):
        for stage in STAGES:
            table = (*stage.name.split(), key)
            is_given = any(table[: len(path)] == path for path in paths)
            if key in own.get(stage.name, {}) and _takes(stage, key, tables) and not is_given:
                raise InputError(
                    f'{where}: the "{key}" of [{".".join(table[:-1])}] would go before that of the command '
                    f"line; give --set {'.'.join(table)}=VALUE as well, or take it out of the table"
                )


def _value(text: str) -> Any:
    """What TOML says that `text` is, else the text itself: a list may be written 1,3,10."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def settings_of(tables: Tables, commands: click.Group, where: str) -> dict[str, dict[str, Any]]:
    """The options of each stage that `tables` give, by name; `where` is their file's, for messages.

    Raises InputError for a table of no stage, an option that its command does not have, or that the stages
    before give, and a value that is none of its kind.
    """
    found: dict[str, dict[str, Any]] = {}
    own = _own_tables(tables, where)
    shared = {key: value for key, value in tables.items() if not isinstance(value, Mapping)}
    for key in shared:
        if key not in _SHARED:
            raise InputError(
                f'{where}: "{key}" is none of the options that stages share ({", ".join(_SHARED)}); give it '
                f"in the table of its stage.{nearest(key, _SHARED)}"
            )
    _refuse_idle(shared, own, where)
    for stage in STAGES:
        command = command_of(stage, commands)
        options = options_of(stage, command, has_ckpts="ckpts" in shared)
        given = {**_shared_by(stage, shared), **own.get(stage.name, {})}
        values = {key: _as_text(options.get(key), value) for key, value in given.items()}
        table = stage.name.replace(" ", ".")
        for key in values:
            if key not in options:
                raise InputError(_unknown(f"{where}, [{table}]", key, stage, command, options))
        found[stage.name] = taken(command, values, f"{where}, {table}")
    return found


def _as_text(param: click.Parameter | None, value: Any) -> Any:
    """A number as text where text is expected: epochs = 3 is epochs = "3"."""
    is_text = param is not None and param.type is click.STRING
    return str(value) if is_text and type(value) in (int, float) else value


def _shared_by(stage: Stage, shared: Mapping[str, Any]) -> dict[str, Any]:
    """The shared options that `stage` takes, by their names there."""
    given = {key: value for key, value in shared.items() if _takes(stage, key, shared)}
    if stage.name == "capture" and "layer" in given:
        given["layers"] = [given.pop("layer")]
    return given


def _takes(stage: Stage, key: str, shared: Mapping[str, Any]) -> bool:
    """Whether the shared option `key` is one of `stage`."""
    is_of_own = "ckpts" in shared and stage.name in _OWN and key in ("data", "relations")
    return is_of_own or stage.name in _SHARED[key]


def _own_tables(tables: Tables, where: str) -> dict[str, Tables]:
    """The table of each stage, by the stage's name."""
    names = [stage.name for stage in STAGES]
    found: dict[str, Tables] = {}
    for name, table in tables.items():
        if not isinstance(table, Mapping):
            continue
        inner = {key: one for key, one in table.items() if isinstance(one, Mapping)}
        if inner and len(inner) < len(table):
            loose = ", ".join(f'"{key}"' for key in table if key not in inner)
            raise InputError(f"{where}: [{name}] holds {loose} beside a table; give it in that of its stage")
        parts = {f"{name} {key}": one for key, one in inner.items()} or {name: table}
        for stage, options in parts.items():
            if stage not in names or stage in found:
                word = stage.replace(" ", ".")
                if stage in found:
                    raise InputError(f"{where}: [{word}] stands there twice, once as one word; keep one")
                hint = nearest(word, [one.replace(" ", ".") for one in names])
                raise InputError(f"{where}: [{word}] is not the table of a stage.{hint}")
            found[stage] = dict(options)
    return found


def _refuse_idle(shared: Mapping[str, Any], own: Mapping[str, Tables], where: str) -> None:
    """Raises InputError for what decides nothing where the checkpoints or the SAE are one's own."""
    if "sae" in own.get("find", {}) and own.get("sae train"):
        raise InputError(
            f"{where}: [sae.train] decides nothing beside sae in [find], which leaves that stage out; "
            "--set sae.train={} takes it out as well"
        )
    if "ckpts" not in shared:
        return
    idle = [key for key in ("ckpt", "base", "bos") if key in shared]
    idle += [f"[{name}]" for name in ("split", "mix", "train") if own.get(name)]
    if idle:
        raise InputError(
            f"{where}: {', '.join(idle)} decides nothing beside ckpts, which leaves split, mix and train out"
        )


def options_of(stage: Stage, command: Configured, *, has_ckpts: bool = False) -> dict[str, click.Parameter]:
    """The options of a stage that an experiment may give, by their names in its table."""
    made = set(stage.takes) - ({"ckpts"} if has_ckpts else set()) - {"sae"}
    never = {*_NEVER, "data"} if stage.name == "mix" else set(_NEVER)  # where the data is now
    return {key: one for key, one in command.settings.items() if key not in never and one.name not in made}


def command_of(stage: Stage, commands: click.Group) -> Configured:
    """The command of a stage, with its options."""
    found: Any = commands
    for word in stage.name.split():
        found = found.commands[word]
    assert isinstance(found, Configured)
    found.get_params(click.Context(found))
    return found


def _unknown(
    where: str, key: str, stage: Stage, command: Configured, options: Mapping[str, click.Parameter]
) -> str:
    if key in command.settings:
        what = "belongs to the command line" if key in _NEVER else "is given by the stages before it"
        return f'{where}: "{key}" {what}; leave it out'
    return f'{where}: `morfi {stage.name}` has no option "{key}".{nearest(key, options)}'


def experiment_text(settings: Settings, commands: click.Group, *, ascii_only: bool) -> str:
    """The file of an experiment with every option of its stages, at what was given or by default."""
    tables = []
    for stage in stages_of(settings):
        command, own = command_of(stage, commands), settings[stage.name]
        options = options_of(stage, command, has_ckpts="ckpts" in own)
        given = {str(one.name): own.get(str(one.name)) for one in command.settings.values()}
        tables.append(written(f"morfi {stage.name}", options, given, ascii_only=ascii_only))
    return "\n".join(tables)
