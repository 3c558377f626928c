"""What options on the command line change in the file of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from morfi.cli import cli
from morfi.command.experiment import asked_for, command_of, options_of
from morfi.errors import InputError
from morfi.experiment import STAGES, Stage

# Of each option that stages share, as TOML has it, a value of the file and one of the command line.
SHARED = {
    "ckpt": ("'a'", "'b'"),
    "base": ("'a'", "'b'"),
    "bos": ("'yes'", "'no'"),
    "data": ("'a'", "'b'"),
    "relations": ("'P17'", "'P36'"),
    "layer": ("1", "2"),
    "dtype": ("'float32'", "'float16'"),
    "engine": ("['block_size=16']", "['block_size=32']"),
    "match": ("'answer'", "'squad'"),
    "seed": ("1", "2"),
}
OWN = "ckpts = 's.toml'\n"  # checkpoints of one's own
IDLE = ("ckpt", "base", "bos")  # beside those


def settings(text: str, *changes: str, relations: str | None = None) -> dict[str, Any]:
    Path("my.toml").write_text(text)
    given = {"preset": None, "fast": False, "seeds": None, "relations": relations, "changes": changes}
    return asked_for(Path("my.toml"), given, cli)


def takers(shared: str, key: str, value: str) -> Sequence[Stage]:
    """The stages that take a shared option, and may be given it in their tables as well."""
    plain, changed = settings(shared), settings(shared, f"{key}={value}")
    return [
        stage
        for stage in STAGES
        if plain[stage.name] != changed[stage.name]
        and key in options_of(stage, command_of(stage, cli), has_ckpts=bool(shared))
        and not (shared and stage.name in ("split", "mix", "train"))  # left out
    ]


@pytest.mark.parametrize(
    ("key", "shared"),
    [(key, shared) for key in SHARED for shared in ("", OWN) if not shared or key not in IDLE],
)
def test_no_value_of_the_command_line_is_lost_to_a_table(
    key: str, shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    of_file, of_line = SHARED[key]
    found = takers(shared, key, of_line)
    assert found
    for stage in found:
        table = stage.name.replace(" ", ".")
        text = f"{shared}[{table}]\n{key} = {of_file}\n"
        with pytest.raises(InputError, match=rf'"{key}" of \[{table}\] .* give --set {table}\.{key}=VALUE'):
            settings(text, f"{key}={of_line}")
        both = settings(text, f"{key}={of_line}", f"{table}.{key}={of_file}")
        assert both[stage.name] == settings(text)[stage.name]
        assert settings(text, f"{table}.{key}={of_line}")[stage.name] != both[stage.name]


@pytest.mark.parametrize("table", ["sweep", "capture", "sae.train"])
def test_checkpoints_of_the_command_line_are_not_lost_to_a_table(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf'"ckpts" of \[{table}\] would go before'):
        settings(f"[{table}]\nckpts = 'a.toml'", "ckpts=b.toml")


@pytest.mark.parametrize(
    "changes", [("seed=1", "seed=2"), ("find.seed=1", "find={seed = 2}"), ("sae train.k=1", "sae={}")]
)
def test_no_option_replaces_what_another_gave(
    changes: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^--set \S+ takes the place of \S+, which another option gives"):
        settings("", *changes)


def test_relations_are_short_for_set_relations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert settings("", relations="P17") == settings("", "relations=P17")
    with pytest.raises(InputError, match="relations takes the place of relations"):
        settings("", "relations=P36", relations="P17")
    with pytest.raises(InputError, match=r'the "relations" of \[split\] would go before'):
        settings("[split]\nrelations = 'P36'", relations="P17")
