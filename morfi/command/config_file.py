"""TOML files of options: `--config` reads them, `--write-config` prints them."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from morfi.errors import InputError, nearest, reason_of
from morfi.runs.options import default_here, option_of

_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a string in quotes"}
_LARGEST = 2**1023  # a whole number that is a float too
_UNSET: tuple[Any, ...] = (None, (), {})  # as an option is that was not given


class Setting(Protocol):
    """An option or argument of a command."""

    @property
    def name(self) -> str | None:
        """The name of the value among those given."""
        ...


def read_toml(file: Path) -> dict[str, Any]:
    """What a TOML file holds; raises InputError where it cannot be read, or is none."""
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}; give a TOML file") from error
    except (ValueError, RecursionError) as error:
        reason = "a whole number has thousands of digits" if "string conversion" in str(error) else None
        raise InputError(f"{file} is not valid TOML: {reason or reason_of(error)}") from error


def read_config(
    file: Path, command: str, options: Collection[str], commands: Collection[tuple[str, ...]]
) -> dict[str, Any]:
    """The values in `file` for one command: top-level keys, and over them those of the command's table.

    Tables of other commands are passed over. `command` is as typed, such as "morfi sae train"; `commands` are
    the words of all, such as ("sae", "train").
    Raises InputError for a file that is no TOML, a table of no command and a key that is none of `options`.
    """
    found = read_toml(file)
    _check_tables(file, found, options, commands)
    own: Any = found
    for word in command.split()[1:]:
        own = own.get(word, {}) if isinstance(own, Mapping) else {}
    given = {key: value for key, value in found.items() if not isinstance(value, Mapping)}
    given |= own if isinstance(own, Mapping) else {}
    for key in given:
        if key not in options:
            raise InputError(
                f'{file}: `{command}` has no option "{key}"; see {command} --help.{nearest(key, options)}'
            )
    return given


def _check_tables(
    file: Path, found: Mapping[str, Any], options: Collection[str], commands: Collection[tuple[str, ...]]
) -> None:
    for name, table in found.items():
        if name in options:
            if isinstance(table, Mapping) and not any(words[0] == name for words in commands):
                raise InputError(
                    f"{file}: {name} is a table; it is an option, so give it a value: {name} = ..."
                )
            continue
        if not isinstance(table, Mapping):
            if any(words[0] == name for words in commands):
                raise InputError(f"{file}: {name} is {_shown(table)}; expected one table, [{name}]")
            continue
        if (name,) in commands:
            continue
        if not any(words[0] == name for words in commands):
            hint = nearest(name, {words[0] for words in commands})
            raise InputError(f"{file}: [{name}] is not the table of a command.{hint}")
        for key, inner in table.items():
            if (name, key) not in commands or not isinstance(inner, Mapping):
                hint = nearest(f"{name} {key}", map(" ".join, commands))
                raise InputError(f'{file}: [{name}] holds "{key}", which is not a command.{hint}')


def of_kind(where: str, value: Any, kind: type, *, several: bool) -> Any:
    """A value of a file as an option of this `kind` takes it: a tuple where it takes `several`, or text.

    Raises InputError, which begins with `where`, for another type; 3 is a number too, and 3.0 whole.
    """
    if several and isinstance(value, str):
        return value
    if several and isinstance(value, list) and value:
        return tuple(of_kind(where, one, kind, several=False) for one in value)
    one: Any = float(value) if kind is float and type(value) is int and abs(value) < _LARGEST else value
    if kind is int and type(value) is float and value.is_integer():
        one = int(value)
    if type(one) is kind:
        return (one,) if several else one
    listed = f", or a list of them: {_EXPECTED[kind]} each" if several else ""
    raise InputError(f"{where} is {_shown(value)}; expected {_EXPECTED[kind]}{listed}")


def written(
    command: str, settings: Mapping[str, Setting], given: Mapping[str, Any], *, ascii_only: bool
) -> str:
    """A command's table of a configuration file: its `settings` by key, with values `given` or by default.

    One that has no value, or whose value the command finds out as it runs, is a comment.
    """
    lines = [f"[{'.'.join(command.split()[1:])}]"]
    resumes = given.get("resume") not in (None, "auto")  # the run that is named has a configuration
    fields: dict[str | None, Any] = {one.name: getattr(one, "field", None) for one in settings.values()}
    for key, one in settings.items():
        value, field, unset = given[str(one.name)], fields[one.name], getattr(one, "shown", "")
        if value in _UNSET and field is not None:
            other, *wanted = option_of(field).when or (None,)
            if resumes:
                unset = "as in the run that is resumed"
            elif other is not None and (given[other] or fields[other].default) not in wanted:
                values = [each for each in wanted if each is not None]
                unset = f"only with {other} {' or '.join(values)}" if values else f"as {other} needs it"
            else:
                value = default_here(field)
        if value in _UNSET:
            lines.append(f"# {key}: {unset or 'not given'}")
        else:
            lines.append(f"{key} = {_toml(value, ascii_only=ascii_only)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any, *, ascii_only: bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(one, ascii_only=ascii_only) for one in value)}]"
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{text!r} is not Unicode, and TOML is; leave --write-config out") from error
    special = r"[^\x20-\x7e]" if ascii_only else r"\x7f"
    return re.sub(special, lambda one: f"\\U{ord(one[0]):08x}", json.dumps(text, ensure_ascii=False))


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value, default=str, ensure_ascii=False)
