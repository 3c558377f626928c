"""`morfi steer` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, Ended

SMALL = ("--alphas", "-1,1", "--controls", 2, "--random", 2)


@pytest.fixture
def steer(run: CommandLine, steerable: tuple[Any, str]) -> Callable[..., Ended]:
    """Runs `morfi COMMAND` on the store of a find run; RUN stands for the find run."""
    store, find_id = steerable

    def command(*arguments: object) -> Ended:
        given = [find_id if one == "RUN" else one for one in arguments]
        return run(*given, "--db", store.path)

    return command


def test_it_prints_one_table_and_writes_the_picture(steer: Callable[..., Ended]) -> None:
    options = ("--combine", "--halving", "--layer-scan", "--ids", "0,3")
    ended = steer("steer", "--ckpt", "M_100", "--latents", "RUN", *SMALL, *options, "--figure", "mine")
    assert ended.code == 0, ended.err
    for text in (
        "M_100 steered after layer 1, --op add, positions all; alpha in median residual norms of",
        "M_100, unsteered",
        "delta_u after each captured layer",
        "no layer gains anything",
        "R_K of M_0",
        "latent 0   rises",
        "best 2",
        "random 2",
        "mean gain by how directions were chosen",
        "\ncontrol latents                   2       +0.0 ",
        "against delta_u: +0.0 points",
        "successive halving: ",
    ):
        assert text in ended.out, text
    assert Path("mine.png").stat().st_size > 0
    assert Path("mine.svg").stat().st_size > 0
    shown = steer("show", "last", "--json")
    found = json.loads(shown.out)
    assert (found["kind"], found["status"], found["n_done"]) == ("steer", "done", found["n_planned"])
    assert {one["direction"]["kind"] for one in found["outcomes"]} == {
        "latent",
        "combined",
        "delta_u",
        "control",
        "random",
        "scan",
    }
    assert steer("steer", "--ckpt", "M_100", "--latents", "RUN", "--op", "ablate", "--json").code == 0


@pytest.mark.quick
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--alphas", "-1,x"), '--alphas is "-1,x"; expected numbers between commas'),
        (("--alphas", "nan"), "expected finite numbers"),
        (("--alphas", "0,1"), "0 changes nothing"),
        (("--ids", "1,two"), "expected whole numbers between commas"),
        (("--report-on", "dev"), "give two splits"),
        (("--ckpt", "M_1"), "has no M_1"),
        (("--latents", "split"), "is a run of `morfi split`; give one of `morfi find`"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(
    steer: Callable[..., Ended], options: tuple[str, ...], message: str
) -> None:
    ended = steer("steer", "--ckpt", "M_100", "--latents", "RUN", *options)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err.splitlines()[-1]
