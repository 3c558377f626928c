"""A checkpoint of an experiment has one name, whichever row of the store it is read from."""

from __future__ import annotations

from morfi.conditions.condition import BASE, Condition, condition_of
from morfi.store.records import CapturedRow, CheckpointRow, SweepRow, exact

STOPPED = Condition(100, 0, "early-stop", 7)


def test_ids_and_labels_are_those_that_clients_and_messages_have() -> None:
    assert (STOPPED.id, STOPPED.name) == ("level-100-seed-0-epoch-early-stop", "M_100")
    assert STOPPED.label == "M_100, seed 0, epoch early-stop"
    assert (BASE.id, BASE.name, BASE.label) == ("base", "base model", "base model")


def test_every_row_about_a_checkpoint_gives_the_same_condition() -> None:
    trained = CheckpointRow(100, 0, "early-stop", 7, "/x", "a" * 64, {}, 1)
    asked = (3, 100, 0, "early-stop", 7, "c" * 64, 0.5, 1)
    swept, captured = SweepRow(*asked, "sweep-eval-0"), CapturedRow(*asked, "/acts", {}, 2.0)
    assert {condition_of(trained), condition_of(swept), condition_of(captured)} == {STOPPED}
    base = SweepRow(0, None, None, None, None, "b" * 64, 0.0, 1, "sweep-eval-1")
    assert condition_of(base) is BASE


def test_the_epoch_that_a_setting_came_to_tells_no_conditions_apart() -> None:
    assert Condition(100, 0, "early-stop", 2) == STOPPED
    for other in (Condition(90, 0, "early-stop", 7), Condition(100, 1, "early-stop", 7)):
        assert other != STOPPED
    assert Condition(100, 0, "7", 7) != STOPPED


def test_levels_are_any_numbers_and_whole_ones_show_no_fraction() -> None:
    half, whole = Condition(0.5, 1, "final", None), Condition(exact(100.0), 0, "10", 10)
    assert (half.id, half.name, half.label) == (
        "level-0.5-seed-1-epoch-final",
        "M_0.5",
        "M_0.5, seed 1, epoch final",
    )
    assert (whole.id, whole.name) == ("level-100-seed-0-epoch-10", "M_100")
    assert [str(exact(level)) for level in (-3.0, 0.0, 1e300, -0.25)] == ["-3", "0", "1e+300", "-0.25"]
