"""Series from TOML: anyone's checkpoints, each with the level of one property."""

from __future__ import annotations

import math
import os
import re
import tomllib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from morfi.checkpoints import Checkpoint, may_be_on_hub, resolve, resolve_live
from morfi.checkpoints.presets import PRESETS
from morfi.conditions.condition import BASE, Condition
from morfi.conditions.levels import Property
from morfi.conditions.series import Member, Series, level_named
from morfi.errors import FaultsError, InputError, nearest, reason_of
from morfi.files import note_source
from morfi.store.records import exact
from morfi.terminal import Say

UNNAMED_EPOCHS = "final"  # of a checkpoint whose table does not say
_KEYS = ("property", "unit", "base", "checkpoint")
_CHECKPOINT_KEYS = ("path", "level", "seed", "epochs", "name")
_EPOCHS = re.compile(r"[A-Za-z0-9][\w.-]{0,39}", re.ASCII)
_LARGEST = 2**63 - 1  # that the store takes


@dataclass(frozen=True, slots=True)
class Listed:
    """A [[checkpoint]] table: what it is called in messages, and what it says.

    Its `condition` is None where the level is missing or wrong, which is a fault of its own.
    """

    where: str
    path: str
    condition: Condition | None
    name: str | None


@dataclass(slots=True)
class _Reading:
    """A file that is read to its end, whatever is wrong in it."""

    file: Path
    faults: list[str] = field(default_factory=list)

    def text(self, table: Mapping[str, Any], key: str, where: str, *, needed: bool = True) -> str | None:
        """The text of a key; None, with a fault unless it is not needed, where there is none."""
        value = table.get(key)
        if isinstance(value, str) and value.strip() and value.isprintable():
            return value
        if value is not None or needed:
            found = "missing" if value is None else f"{_shown(value)}"
            self.faults.append(f"{where}{key} is {found}; expected a text on one line")
        return None

    def keys(self, table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
        """Notes the keys of a table that nothing knows."""
        for key in table:
            if key not in known:
                hint = nearest(key, known)
                self.faults.append(
                    f"{where}the key {_shown(key)} is none of {', '.join(known)}.{hint}".removesuffix(".")
                )

    def level(self, table: Mapping[str, Any], where: str) -> float | None:
        """The level of a table."""
        value = table.get("level")
        if isinstance(value, bool) or not isinstance(value, int | float):
            found = "missing" if value is None else f"{_shown(value)}"
            self.faults.append(f"{where}level is {found}; expected a number")
        elif abs(value) > 1e300 or not math.isfinite(value):
            self.faults.append(f"{where}level is {_shown(value)}; expected a finite number")
        else:
            return exact(float(value))
        return None

    def seed(self, table: Mapping[str, Any], where: str) -> int:
        """The seed of a table, 0 where it says none."""
        value = _whole(table.get("seed", 0))
        if type(value) is int and 0 <= value <= _LARGEST:
            return value
        self.faults.append(f"{where}seed is {_shown(value)}; expected a whole number from 0")
        return 0

    def epochs(self, table: Mapping[str, Any], where: str) -> tuple[str, int | None]:
        """The epoch setting of a table, and its number where it is one."""
        value = _whole(table.get("epochs", UNNAMED_EPOCHS))
        text = str(value) if type(value) in (int, float, str) else ""
        number = int(text) if text.isascii() and text.isdecimal() else None
        if not _EPOCHS.fullmatch(text) or (number is not None and (number >= 2**31 or str(number) != text)):
            self.faults.append(
                f"{where}epochs is {_shown(value)}; expected a number from 0 or a name such as "
                '"early-stop", of letters, digits, ".", "_" and "-"'
            )
            return UNNAMED_EPOCHS, None
        return text, number


def open_series(file: Path, dtype: str | None, say: Say | None) -> Series:
    """The series that `file` describes, every checkpoint looked at; raises FaultsError, all at once."""
    reading = _Reading(file)
    found = _parsed(file)
    listed = _read(found, reading)
    varied = reading.text(found, "property", ""), reading.text(found, "unit", "", needed=False)
    base = _base(reading.text(found, "base", ""), reading, dtype, say)
    members = _members(listed, base, reading, say) if base is not None else _looked_for(listed, reading)
    if reading.faults or base is None:
        raise FaultsError(str(file), reading.faults)
    return Series(str(file.absolute()), Property(str(varied[0]), varied[1]), base, members, None)


def base_named(file: Path) -> str:
    """The base of the series in `file`, as `resolve` takes it; raises InputError where it names none."""
    found = _parsed(file).get("base")
    if not isinstance(found, str):
        raise InputError(f"{file} names no base")
    return found if found in PRESETS else _place(file, found)


def _parsed(file: Path) -> dict[str, Any]:
    note_source(file)
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}; give the TOML file of a series") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not valid TOML: {reason_of(error)}") from error


def _read(found: Mapping[str, Any], reading: _Reading) -> list[Listed]:
    """The checkpoints of a file, in order of level, seed and epochs."""
    reading.keys(found, _KEYS, "")
    tables = found.get("checkpoint", [])
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        reading.faults.append(f"checkpoint is {_shown(tables)}; expected [[checkpoint]] tables")
        return []
    listed = []
    for number, table in enumerate(tables, 1):
        named = table.get("path") if isinstance(table.get("path"), str) else None
        where = f"checkpoint {number}{f' ({_end_of(named)})' if named else ''}: "
        reading.keys(table, _CHECKPOINT_KEYS, where)
        path, name = reading.text(table, "path", where), reading.text(table, "name", where, needed=False)
        level, seed = reading.level(table, where), reading.seed(table, where)
        setting, epoch = reading.epochs(table, where)
        if name is not None and _is_reserved(name, level):
            reading.faults.append(
                f"{where}the name {_shown(name)} stands for another checkpoint in --ckpt and --reference; "
                "give another name, or leave it out"
            )
        if path is not None:
            condition = None if level is None else Condition(level, seed, setting, epoch)
            listed.append(Listed(where, path, condition, name))
    reading.faults += _of_all(listed, len(tables))
    n_with_epochs = sum("epochs" in table for table in tables)
    if 0 < n_with_epochs < len(tables):
        reading.faults.append(
            f"epochs is given for {n_with_epochs} of {len(tables)} checkpoints; give it for all or for none"
        )
    return sorted(listed, key=_order)


def _of_all(listed: Sequence[Listed], n_tables: int) -> list[str]:
    """What is wrong with the checkpoints of a file together."""
    faults = []
    conditions = [(one.where, one.condition) for one in listed if one.condition is not None]
    levels = {condition.level for _, condition in conditions}
    if n_tables < 2:
        n = "no checkpoint" if not n_tables else "one checkpoint"
        faults.append(f"there is {n}; a series has at least two, of different levels")
    elif len(conditions) == n_tables and len(levels) == 1:
        faults.append(f"all levels are {levels.pop()}; a series has at least two different ones")
    faults += [
        f"{other}{condition.label} is {where[:-2]} already" for where, other, condition in _alike(conditions)
    ]
    names = _alike((one.where, one.name) for one in listed if one.name is not None)
    return faults + [
        f"{other}the name {_shown(name)} is that of {where[:-2]}" for where, other, name in names
    ]


def _is_reserved(name: str, level: float | None) -> bool:
    """Whether --ckpt takes the name for something else: "base", or M_100 where this is not of level 100."""
    named = level_named(name)
    return name in (BASE.id, BASE.name) or (named is not None and named != level)


def _order(one: Listed) -> tuple[float, int, bool, int, str]:
    condition = one.condition
    if condition is None:
        return (math.inf, 0, True, 0, "")
    epoch = condition.epoch
    return (condition.level, condition.seed, epoch is None, epoch or 0, condition.epoch_setting)


def _alike(named: Iterable[tuple[str, Hashable]]) -> list[tuple[str, str, Any]]:
    """Where a value stands first, where it stands again, and the value."""
    first: dict[Hashable, str] = {}
    return [(first[value], where, value) for where, value in named if first.setdefault(value, where) != where]


def _base(named: str | None, reading: _Reading, dtype: str | None, say: Say | None) -> Checkpoint | None:
    if named is None:
        return None
    given = named if named in PRESETS else _place(reading.file, named)
    base = _tried(reading, "base: ", lambda: resolve(given, dtype=dtype, say=say))
    if base is not None and base.adapter_sha256 is not None:
        reading.faults.append(f"base: {named} is an adapter; give the model that it was trained on")
        return None
    return base


def _members(
    listed: Sequence[Listed], base: Checkpoint, reading: _Reading, say: Say | None
) -> dict[Condition, Member]:
    members: dict[Condition, Member] = {}
    seen: dict[str, Listed] = {}
    for one in listed:
        path = _place(reading.file, one.path)
        found = _tried(reading, one.where, lambda path=path: resolve_live(path, base=base, say=say))  # type: ignore[misc]
        if found is None or one.condition is None:
            continue
        first = seen.setdefault(found.sha256, one)
        if found.sha256 == base.sha256 or not _of_one_training(first, one):
            equal = "the base" if found.sha256 == base.sha256 else first.where[:-2]
            reading.faults.append(f"{one.where}it is equal to {equal} (sha256 {found.sha256[:12]})")
        members[one.condition] = Member(path, found.adapter_sha256 or found.sha256, name=one.name)
    return members


def _looked_for(listed: Sequence[Listed], reading: _Reading) -> dict[Condition, Member]:
    """No members, of a file without a usable base; notes the folders that are not there."""
    for one in listed:
        path = _place(reading.file, one.path)
        if os.path.isabs(path) and not os.path.isdir(path):
            reading.faults.append(f"{one.where}there is no folder {path}")
    return {}


def _of_one_training(one: Listed, other: Listed) -> bool:
    """Whether both are one, or states of one training: that of early stopping is that of an epoch as well."""
    if one is other:
        return True
    first, second = one.condition, other.condition
    if first is None or second is None:
        return False
    return first != second and (first.level, first.seed) == (second.level, second.seed)


def _tried(reading: _Reading, where: str, what: Callable[[], Checkpoint]) -> Checkpoint | None:
    try:
        return what()
    except InputError as error:
        reading.faults.append(f"{where}{error}")
    except OSError as error:
        reading.faults.append(f"{where}{error.strerror or error}; give a folder or a hub id")
    return None


def _place(file: Path, given: str) -> str:
    """What is given, as a path from the file's folder; a preset or hub id as it is where no such path is."""
    beside = os.path.join(file.absolute().parent, os.path.expanduser(given))
    is_name = given in PRESETS or may_be_on_hub(given)
    return given if is_name and not os.path.exists(beside) else os.path.normpath(beside)


def _whole(value: Any) -> Any:
    """A whole number for one that is written with a fraction of 0: 3 for 3.0."""
    return int(value) if type(value) is float and value.is_integer() else value


def _shown(value: Any) -> str:
    """A value for a message."""
    if isinstance(value, Mapping):
        return "a table"
    try:
        return _short(str(value).lower() if type(value) is bool else repr(value))
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"


def _end_of(path: str) -> str:
    """A path for a message: its end, for long paths of one series mostly begin alike."""
    return path if len(path) <= 60 else f"...{path[-57:]}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
