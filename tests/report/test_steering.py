"""The table and the picture of a steer run, from numbers made up for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from morfi.errors import InputError
from morfi.interventions.config import SteerRun
from morfi.interventions.groups import Group, Margin
from morfi.interventions.outcome import Outcome, Steered, Tried, recovery, share_of
from morfi.report.steering import steer_object, steer_table
from morfi.report.steering_figure import steer_figure
from morfi.runs.compare import difference
from morfi.statistics import Interval
from morfi.store.records import DirectionRow

BEFORE, AFTER = [True] * 5 + [False] * 5, [True] * 4 + [False] + [True] * 3 + [False] * 2
REFERENCE = [True] * 7 + [False] * 3
CONFIG = SteerRun(
    latents="find-1",
    ckpt="M_100",
    reference="M_0",
    epochs="1",
    layer=25,
    median_norm=81.25,
    train_run="train-1",
    split_run="split-1",
)


def outcome(position: int, kind: str, *, operation: str = "add", layer: int = 25) -> Outcome:
    name = kind if kind == "delta_u" else f"{kind} {position}"
    row = DirectionRow(position, name, kind, position, layer, operation, 81.25, 1, 21, 0.2, {})
    alphas = (-1.0, -0.5, 0.5, 1.0) if operation == "add" else (0.0,)
    tried = tuple(Tried(alpha, 81.25 * alpha, 10, 0.5 + alpha / 8, alpha / 8) for alpha in alphas)
    by_reference = {name: recovery(BEFORE, AFTER, REFERENCE) for name in ("reference", "base")}
    reported = None if kind == "scan" else difference(BEFORE, AFTER)
    return Outcome(row, tried, tried[-1], reported, None if kind == "scan" else by_reference)


def steered(outcomes: list[Outcome]) -> Steered:
    both = {"dev": share_of(BEFORE), "test": share_of(BEFORE)}
    ahead, behind = difference(BEFORE, AFTER), difference(AFTER, BEFORE)
    spread = Interval(-0.1, 0.01)
    groups = (
        Group("latent", 1, 0.2, None, "latent 7", 1.0, 0.1, ahead),
        Group("change", 2, 0.1, spread, "latent 7", 1.0, 0.1, ahead, Margin(0.1, Interval(-0.2, 0.4))),
        Group("random", 2, -0.05, spread, "random 8", 1.0, 0.0, ahead),
        Group("delta_u", 1, 0.4, None, "delta_u", 1.0, 0.1, ahead, None, behind),
    )
    accuracies = dict.fromkeys(("base", "reference", "checkpoint"), both)
    return Steered(25, accuracies, tuple(outcomes), groups, 600, 1000)


def test_a_line_has_strength_gain_interval_p_and_recovery() -> None:
    text = steer_table(steered([outcome(7, "latent"), outcome(8, "delta_u")]), CONFIG)
    line = next(line for line in text.splitlines() if line.startswith("latent 7 "))
    for cell in ("rises", "+1", "+81.25", "62.5 %", "50.0 %", "70.0 %", "+20.0", "0.62"):
        assert f" {cell} " in line, (cell, line)
    assert "66.7 % (21 to 94, n 3)" in line
    assert "M_0 40.0 % (2 of 5), the base model 40.0 % (2 of 5)" in text
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["latents with a trend"][4:8] == ["1", "+20.0", "latent", "7"]
    assert lines["latents whose mean changes most"][5:10] == ["2", "+10.0", "-10.0", "to", "+1.0"]
    assert lines["latents whose mean changes most"][-4:] == ["+10.0", "(-20.0", "to", "+40.0)"]
    assert lines["random directions"][2:7] == ["2", "-5.0", "-10.0", "to", "+1.0"]
    assert "latent 7, the best by what was chosen on, against delta_u: -20.0 points" in text
    assert max(map(len, text.splitlines())) < 180


def test_a_latent_that_several_rules_pick_is_said_to_count_in_both() -> None:
    config = replace(CONFIG, rivals=True, picks={"change": [7, 9], "knowledge": []})
    text = steer_table(steered([outcome(7, "latent"), outcome(9, "rival")]), config)
    assert "latents whose mean changes most: 1 of 2 are among the latents steered anyway" in text
    assert "latents that tell known from unknown: none, for it is not known which of the" in text


def test_a_scan_names_the_layer_and_says_where_the_sae_reads() -> None:
    rows = [outcome(8, "delta_u"), outcome(9, "scan", layer=10), outcome(7, "latent")]
    better = Tried(1.0, 81.25, 10, 0.9, 0.4)
    scanned = Outcome(rows[1].direction, rows[1].tried, better, None, None)
    text = steer_table(steered([rows[0], scanned, rows[2]]), replace(CONFIG, layer_scan=True))
    assert "use layer 10, with an SAE that reads there: this one reads after layer 25" in text
    assert "\nscan 9" not in text


def test_a_halving_says_what_it_saved_and_other_operations_have_no_strength() -> None:
    rows = [outcome(7, "latent", operation="ablate"), outcome(8, "random", operation="project")]
    text = steer_table(steered(rows), replace(CONFIG, op="ablate", halving=True))
    assert "successive halving: 600 answers instead of 1000, 40 % fewer" in text
    assert "random 8   projected out " in text
    assert "+0 " not in text


def test_the_object_is_plain(tmp_path: Path) -> None:
    found = steer_object(steered([outcome(7, "latent")]))
    assert found["outcomes"][0]["reported"]["n_gained"] == 3
    assert steer_object(None) == {}


@pytest.mark.parametrize("op", ["add", "ablate", "clamp"])
def test_the_picture_is_the_same_every_time(tmp_path: Path, op: str) -> None:
    kinds = ["latent"] * 12 + ["delta_u", "rival", "control", "random", "combined"]
    rows = [
        outcome(place, kind, operation="add" if op == "clamp" else op) for place, kind in enumerate(kinds)
    ]
    config = replace(CONFIG, op=op, values=(0.0, 5.0) if op == "clamp" else None)
    first, again = (steer_figure(steered(rows), config, "M_100").write(tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    svg = first[1].read_text()
    assert "latent 0" in svg
    assert ("further latents" in svg) == (op != "ablate")
    with pytest.raises(InputError, match="nothing to draw"):
        steer_figure(steered([outcome(0, "scan")]), config, "M_100")
