"""Comparisons: what is within the tolerance, and by how much the rest is off."""

from __future__ import annotations

import pytest
import torch

from morfi.engine.protocol import Completion
from morfi.engine.steering import Captured
from morfi.errors import InputError, MorfiError
from morfi.verification.differences import Differences
from morfi.verification.lines import Line, Outcome, attempt
from morfi.verification.reference import Streams
from morfi.verification.tolerance import Expected, distances

STREAMS = (torch.ones(4, 3), torch.full((4, 3), 2.0))
LOGITS = torch.tensor([[9.0, 9.0, 9.0], [0.0, 1.0, 2.0], [5.0, 4.9, 0.0]])
EXPECTED = Expected(Streams(STREAMS, STREAMS, LOGITS, ()), (1e-3, 1e-2), 0.1)


def captured(layer: int, factor: float, *positions: int) -> Captured:
    return Captured(layer, positions, positions, STREAMS[layer][list(positions)] * factor)


def answer(*token_ids: int) -> Completion:
    return Completion("", token_ids, "length", 0)


def test_the_worst_is_the_one_nearest_to_its_tolerance_or_over_it() -> None:
    found = Differences()
    found.take_captured(captured(1, 1.005, 0, 1), EXPECTED)
    found.take_captured(captured(0, 1.0009, 3), EXPECTED)
    assert found.holds
    assert found.streams.where == "after layer 0"
    found.take_captured(captured(1, 1.02, 2), EXPECTED, "of request 5 ")
    line = found.line("capture", "as if it were another layer")
    assert line.outcome == Outcome.DIFFERS
    assert "4 streams by 0.02 of request 5 after layer 1 (tolerance 0.01)" in line.says
    assert line.says.endswith("; as if it were another layer")


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_infinitely_far(wrong: float) -> None:
    found = Differences()
    found.take_captured(captured(0, wrong, 1), EXPECTED)
    assert not found.holds
    assert distances(torch.full((1, 2), wrong), torch.ones(1, 2)).tolist() == [float("inf")]


def test_a_token_counts_by_how_far_it_is_below_the_likeliest() -> None:
    found = Differences()
    found.take_tokens(answer(2, 1), EXPECTED, 2, "answer 0")
    assert found.holds
    assert (found.tokens.n, found.n_forks) == (2, 1)
    found.take_tokens(answer(1, 2), EXPECTED, 2, "answer 1")
    line = found.line("greedy answers")
    assert line.outcome == Outcome.DIFFERS
    assert "in answer 1, token 1" in line.says
    assert line.figures["tokens_off"] == pytest.approx(5 / float(LOGITS[2].std()))


def failing(error: Exception) -> Line:
    raise error


def test_a_refusal_cannot_be_checked_and_a_failure_differs() -> None:
    refused = attempt("swap", failing, InputError("no room"))
    assert (refused.outcome, refused.says) == (Outcome.UNCHECKED, "because the engine refuses it: no room")
    failed = attempt("swap", failing, MorfiError("a layer did not run"))
    assert (failed.outcome, failed.says) == (Outcome.DIFFERS, "the engine failed: a layer did not run")
