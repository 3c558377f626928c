"""The remark that a machine was busy while speeds were measured."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from morfi.verification import speed
from morfi.verification.lines import Line, Outcome
from morfi.verification.speed import KINDS, N_ROUNDS, beside_vllm, check_speed

REMARK = "the machine was busy: these figures say little"
STEADY = [1.0] * N_ROUNDS
UNSTEADY = [1.0, 1.0, 1.0, 1.0, 2.5]


def lines_of(monkeypatch: pytest.MonkeyPatch, slow: dict[str, list[float]]) -> list[Line]:
    """The lines of `check_speed` where each kind takes the seconds in `slow`, else one second a round."""
    clock = 0.0
    n_answered = dict.fromkeys(KINDS, 0)

    def answer(_: Any, kind: str) -> None:
        nonlocal clock
        clock += slow.get(kind, STEADY)[n_answered[kind] % N_ROUNDS]
        n_answered[kind] += 1

    monkeypatch.setattr(speed, "_answer", answer)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: clock))
    subject: Any = None
    return list(check_speed(subject))


def test_every_line_of_a_machine_at_rest_has_its_spread_and_no_remark(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = lines_of(monkeypatch, {"plain": [1.0, 1.0, 1.0, 1.0, 1.25]})
    alone = beside_vllm(lines, lambda: [0.9, 1.0, 1.0, 1.0, 1.2])
    assert "(12.8 to 16)" in lines[0].says
    assert "(13.3 to 17.8); with morfi plain 100%" in alone.says
    assert alone.figures["lowest_requests_per_s"] == pytest.approx(16 / 1.2)
    assert alone.figures["highest_requests_per_s"] == pytest.approx(16 / 0.9)
    for line in (*lines, alone):
        assert line.outcome == Outcome.MEASURED
        assert REMARK not in line.says


@pytest.mark.parametrize("kind", KINDS)
def test_rounds_that_differ_by_more_than_a_factor_two_say_that_the_machine_was_busy(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    lines = lines_of(monkeypatch, {kind: UNSTEADY})
    (own,) = (line for line in lines if line.name == f"speed: {kind}")
    assert own.says.endswith(f"; {REMARK}")
    assert beside_vllm(lines, lambda: STEADY).says.endswith(f"; {REMARK}")


@pytest.mark.parametrize("alone", [UNSTEADY, [7.9] * N_ROUNDS, [0.6] * N_ROUNDS])
def test_an_unlikely_speed_of_vllm_alone_says_that_the_machine_was_busy(
    monkeypatch: pytest.MonkeyPatch, alone: list[float]
) -> None:
    lines = lines_of(monkeypatch, {})
    assert beside_vllm(lines, lambda: alone).says.endswith(f"; {REMARK}")
