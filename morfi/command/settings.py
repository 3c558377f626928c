"""Commands of click with the options of a configuration or a TOML file; their help shows the defaults."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import click

from morfi import terminal
from morfi.command.common import Common
from morfi.errors import InputError

_OPTION = re.compile(r"--([a-z][a-z-]*(=.*)?)?")  # on one line: SQL after a comment stands on the next
_KINDS = ((type(click.BOOL), bool), (type(click.INT), int), (type(click.FLOAT), float))

Decorator = Callable[[Callable[..., None]], Callable[..., None]]


class Listed(click.ParamType):  # type: ignore[type-arg]
    """Values between commas: a tuple of `each`."""

    name = "list"

    def __init__(self, each: type[str] | type[int] | type[float]) -> None:
        self.each = each

    def convert(self, value: Any, param: click.Parameter | None, _: click.Context | None) -> Any:
        """The tuple; raises InputError for text that is no such list."""
        from morfi.runs.options import listed

        if isinstance(value, tuple):
            return value
        return listed(param.opts[0] if param else self.name, value, self.each)


# By the annotation of a configuration's field.
_TYPES: dict[str, Any] = {"str": None, "int": int, "float": float}
_TYPES |= {f"tuple[{each.__name__}, ...]": Listed(each) for each in (str, int, float)}


class Setting(click.Option):
    """An option whose --help ends with its default, or with what happens without it."""

    def __init__(self, *args: Any, field: Field[Any] | None = None, unset: str = "", **more: Any) -> None:
        super().__init__(*args, **more)
        self.field = field
        self._unset = unset

    @property
    def shown(self) -> str:
        """The default as a person types it; "" where there is none."""
        from morfi.runs.options import default_text

        if self.field is not None:
            return "" if self.required else default_text(self.field)
        valued = not self.is_flag and isinstance(self.default, str | int | Path)
        return str(self.default) if valued and self.default != "" else self._unset

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """The value as its type takes it; raises InputError where an empty text stands for one."""
        if value == "" and self.default != "" and not isinstance(self.type, Listed):
            raise InputError(f"{self.opts[0]} is empty; give it a value, or leave it out")
        return super().type_cast_value(ctx, value)

    def value_from_envvar(self, ctx: click.Context) -> Any:
        """The environment's value, where a configuration file has none."""
        return None if self.name in (ctx.default_map or {}) else super().value_from_envvar(ctx)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option and its help."""
        record, shown = super().get_help_record(ctx), self.shown
        if record is None or not shown:
            return record
        return record[0], f"{record[1].removesuffix('.')} (default: {shown}).".lstrip()


class Configured(click.Command):
    """A command that takes --config and --write-config.

    `config` names the dataclass of its configuration, MODULE:CLASS, which is imported when the options are
    needed: one for each field, but for those of `without`. One that is not given is None or (): the defaults
    are the dataclass's.
    """

    def __init__(self, *args: Any, config: str = "", without: Sequence[str] = (), **more: Any) -> None:
        super().__init__(*args, **more)
        self._config = config
        self._without = without

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """All parameters, those of the configuration first."""
        if self._config:
            module, _, name = self._config.partition(":")
            known = fields(getattr(importlib.import_module(module), name))
            self.params[:0] = [_setting(one) for one in known if one.name not in self._without]
            self._config = ""
        return super().get_params(ctx)

    @property
    def settings(self) -> dict[str, click.Parameter]:
        """The parameters that may stand in a configuration file, by their name there."""
        kept = [param for param in self.params if param.name not in ("config", "write_config")]
        return {_key(param): param for param in kept}

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command, or prints its configuration for --write-config."""
        from morfi.command.config_file import written

        if not ctx.params.pop("write_config"):
            return super().invoke(ctx)
        text = written(ctx.command_path, self.settings, ctx.params, ascii_only=not terminal.takes_unicode())
        with terminal.to_reader():
            click.echo(text, nl=False)
        return None


def _setting(one: Field[Any]) -> Setting:
    """The option of a configuration's field."""
    from morfi.runs.options import name_of, option_of

    known, kind = option_of(one), str(one.type).removesuffix(" | None")
    more: dict[str, Any] = {"metavar": known.metavar, "help": known.help}
    if kind == "bool":
        more |= {"is_flag": True, "default": None}
    elif kind.startswith("Mapping") or known.repeatable:
        more["multiple"] = True
    else:
        more["type"] = _TYPES[kind]
    neither = one.default is MISSING and one.default_factory is MISSING and not known.unset
    more["required"] = neither if known.required is None else known.required
    off = f"/--{known.off}" if known.off else ""
    return Setting([f"--{name_of(one)}{off}", one.name], field=one, **more)


def _key(param: click.Parameter) -> str:
    """The name of a parameter in a configuration file."""
    long = [name.removeprefix("--") for name in param.opts if name.startswith("--")]
    return long[0] if long else str(param.name).replace("_", "-")


def _commands(group: click.Group) -> Iterator[tuple[str, ...]]:
    """The words of every command."""
    for name, command in group.commands.items():
        inner = _commands(command) if isinstance(command, click.Group) else ((),)
        yield from ((name, *words) for words in inner)


def _take_defaults(ctx: click.Context, _: click.Parameter, file: Path | None) -> None:
    """Makes the values of a configuration file the defaults of its command."""
    from morfi.command.config_file import read_config

    if file is None or ctx.resilient_parsing or not isinstance(ctx.command, Configured):
        return
    root = ctx.find_root().command
    commands = list(_commands(root)) if isinstance(root, click.Group) else []
    values = read_config(file, ctx.command_path, ctx.command.settings, commands)
    ctx.default_map = taken(ctx.command, values, str(file))


def taken(command: Configured, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The `values` of a TOML file, by the names of their parameters, as the options of `command` take them.

    Raises InputError, which begins with `where`, for a value of another kind.
    """
    from morfi.command.config_file import of_kind

    ctx, settings, found = click.Context(command), command.settings, {}
    for key, value in values.items():
        param, place = settings[key], f"{where}, {key}"
        listed = param.type if isinstance(param.type, Listed) else None
        kind = listed.each if listed else next((k for t, k in _KINDS if isinstance(param.type, t)), str)
        repeated = param.multiple or param.nargs != 1
        given = of_kind(place, value, kind, several=listed is not None or repeated)
        given = (given,) if repeated and isinstance(given, str) else given
        try:
            found[str(param.name)] = param.type_cast_value(ctx, given)
        except click.BadParameter as error:
            raise InputError(f"{place}: {error.message}") from error
        except InputError as error:
            said = str(error).removeprefix(f"--{key} ")  # an option's name, where a key stands
            raise InputError(f"{place} {said}" if said != str(error) else f"{place}: {error}") from error
    return found


class Statement(Configured):
    """A command whose argument may begin with the two hyphens of an SQL comment."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The arguments, with a comment's beginning taken for no option."""
        own = {name for param in self.get_params(ctx) for name in param.opts}
        options = [
            arg
            for arg in args
            if not arg.startswith("--") or arg.partition("=")[0] in own or _OPTION.fullmatch(arg)
        ]
        last = next((one for one in self.get_params(ctx) if options and options[-1] in one.opts), None)
        if isinstance(last, click.Option) and not last.is_flag:
            raise click.BadOptionUsage(options[-1], f"Option '{options[-1]}' requires an argument.", ctx)
        return super().parse_args(ctx, [*options, "--", *(arg for arg in args if arg not in options)])


class Plain(Configured):
    """A command that has no configuration file of its own."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command."""
        return click.Command.invoke(self, ctx)


class Commands(click.Group):
    """A group whose commands take --config."""

    command_class = Configured
    group_class = type


def option(*names: str, kind: Any = None, **more: Any) -> Decorator:
    """An option of a `Setting`; `kind` is its type."""
    return click.option(*names, cls=Setting, type=kind, **more)


def file_option(*names: str, **more: Any) -> Decorator:
    """An option that names a file to write or read."""
    return option(*names, kind=click.Path(path_type=Path, dir_okay=False), **more)


def out_option(default: str, text: str) -> Decorator:
    """--out, the folder in which every run makes one."""
    folder = click.Path(path_type=Path, file_okay=False)
    return option("--out", kind=folder, default=Path(default), help=f"{text}; each run makes one in it.")


new_option = option("--new", is_flag=True, help="Start a new run even where one is there.")
engines_option = option(
    "--engines",
    kind=click.IntRange(1, 4096),
    default=1,
    metavar="N",
    help="Engines that share the work, each in a process of its own; two or more need Ray.",
)
show_prompts_option = option(
    "--show-prompts",
    kind=click.IntRange(1, 10**9),
    metavar="N",
    help="Print N prompts and ask nothing.",
    unset="none are printed",
)
write_config_option = option(
    "--write-config", is_flag=True, help="Print such a file for these options, and run nothing."
)
figure_option = file_option(
    "--figure", help="The picture, written as PNG and SVG.", unset="RUN.png and RUN.svg beside the database"
)


def experiment_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the file or preset of an experiment, and changes of it (`experiment.asked_for`)."""
    decorators = (
        click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False)),
        option(
            "--preset",
            metavar="NAME",
            help="An experiment that comes with morfi, in place of FILE.",
            unset="none",
        ),
        option("--fast", is_flag=True, help="Its short form: minutes instead of hours."),
        option(
            "--set",
            "changes",
            multiple=True,
            metavar="STAGE.OPTION=VALUE",
            help="Another value than FILE's, such as train.epochs=1,3; repeatable.",
            unset="none",
        ),
        option(
            "--relations", metavar="TEXT", help="Short for --set relations=TEXT.", unset="the experiment's"
        ),
        option("--seeds", metavar="N", help="Short for --set train.seeds=N.", unset="the experiment's"),
    )
    for decorate in reversed(decorators):
        command = decorate(command)
    return command


def store_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command --db, -v and --json, which it receives as one `Common`."""

    @option(
        "--db",
        kind=click.Path(path_type=Path),
        default=Path("morfi.duckdb"),
        envvar="MORFI_DB",
        help="Results, else in MORFI_DB.",
    )
    @option("-v", "--verbose", is_flag=True, help="Show what vLLM logs.")
    @option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
    @functools.wraps(command)
    def wrapped(db: Path, verbose: bool, as_json: bool, **given: Any) -> None:
        command(Common(db, verbose, as_json), **given)

    return wrapped


def common_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `store_options`, --config and --write-config."""
    config = file_option(
        "--config",
        is_eager=True,
        expose_value=False,
        callback=_take_defaults,
        help="Options, from TOML.",
        unset="none",
    )
    return store_options(config(write_config_option(command)))
