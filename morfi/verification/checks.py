"""Answers, captures and steering of an engine against the same model in transformers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from morfi.engine.operations import ADD, OPERATIONS
from morfi.engine.steering import MAX_CAPTURED_LAYERS, MAX_ENTRIES, Capture, Captured, Positions, Steering
from morfi.verification.arithmetic import KNOWN
from morfi.verification.differences import Differences
from morfi.verification.lines import Line, Outcome, attempt, unchecked
from morfi.verification.subject import SEEN, Prompt, Subject
from morfi.verification.tolerance import Expected, distances, root_mean_square

if TYPE_CHECKING:
    import torch

POSITIONS: tuple[Positions, ...] = ("all", "prompt", "generated")


def check_answers(subject: Subject) -> Iterator[Line]:
    """Greedy answers: every token is the reference's likeliest, or as likely within the tolerance."""
    yield attempt("greedy answers", _answers, subject)


def _answers(subject: Subject) -> Line:
    found = Differences()
    answers = subject.ask(subject.prompts, n_tokens=16)
    for number, (prompt, answer) in enumerate(zip(subject.prompts, answers, strict=True)):
        found.take_tokens(answer, subject.follow(prompt, answer), len(prompt), f"answer {number}")
    return found.line("greedy answers")


def check_capture(subject: Subject) -> Iterator[Line]:
    """The residual stream after every layer, and, where it is steered, before that."""
    yield attempt("capture", _capture, subject)
    yield attempt("capture before steering", _capture_before, subject)


def _capture(subject: Subject) -> Line:
    layers = [
        tuple(range(first, min(first + MAX_CAPTURED_LAYERS, subject.n_layers)))
        for first in range(0, subject.n_layers, MAX_CAPTURED_LAYERS)
    ]
    prompts = [prompt for prompt, _ in zip(itertools.cycle(subject.prompts), layers, strict=False)]
    answers = subject.ask(prompts, capture=[Capture(some, "all") for some in layers])
    found, mistaken = Differences(), ""
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = subject.follow(prompt, answer)
        for one in answer.captured:
            found.take_captured(one, expected)
            mistaken = mistaken or _mistaken(one, expected)
    return found.line("capture", mistaken)


def _mistaken(found: Captured, expected: Expected) -> str:
    """Which other layer's stream was given for that of a layer; "" for none."""
    for other, rows in enumerate(expected.streams.after):
        off = root_mean_square(distances(found.values, rows[: len(found.values)]))
        if other != found.layer and float(off) <= expected.allowed[other]:
            return f"after layer {found.layer} came what transformers has after layer {other}"
    return ""


def _capture_before(subject: Subject) -> Line:
    steering = [[subject.steering(ADD, layer)] for layer in subject.some_layers]
    prompts = [prompt for prompt, _ in zip(itertools.cycle(subject.prompts), steering, strict=False)]
    captures = [Capture((one.layer,), "all", before=True) for (one,) in steering]
    found = Differences()
    for prompt, wanted, answer in zip(
        prompts, steering, subject.ask(prompts, steering, captures), strict=True
    ):
        expected = subject.follow(prompt, answer, wanted)
        for one in answer.captured:
            found.take_captured(one, expected, rows=expected.streams.before)
    return found.line("capture before steering")


def check_operations(subject: Subject) -> Iterator[Line]:
    """Every operation alone, at several layers and positions, then all of them at once."""
    for operation in OPERATIONS.values():
        name = f"steering: {operation.name}"
        if operation.name not in KNOWN:
            yield unchecked(name, "verification does not know its arithmetic")
            continue
        wanted = [
            [subject.steering(operation, layer, amount=amount, positions=positions, number=number)]
            for number, (layer, positions) in enumerate(itertools.product(subject.some_layers, POSITIONS))
            for amount in ((1.0, -2.0)[number % 2],)
        ]
        yield attempt(name, _compared, subject, name, wanted)
    yield attempt("steering: several at once", _several, subject, "steering: several at once")


def _several(subject: Subject, name: str) -> Line:
    """The line of every operation after one layer and every one after another, in one request."""
    layers = dict.fromkeys((0, subject.n_layers - 1))
    found = [
        subject.steering(operation, layer, number=number)
        for layer in layers
        for number, operation in enumerate(one for one in OPERATIONS.values() if one.name in KNOWN)
    ]
    return _compared(subject, name, [found[:MAX_ENTRIES]] * 2)


def _compared(subject: Subject, name: str, steering: Sequence[Sequence[Steering]]) -> Line:
    """The line of requests that are steered so, compared after the layer that is steered and the last."""
    import torch

    prompts: list[Prompt] = list(itertools.islice(itertools.cycle(subject.prompts), len(steering)))
    last = subject.n_layers - 1
    captures = [Capture(tuple(dict.fromkeys((one[0].layer, last))), "all") for one in steering]
    answers = subject.ask(prompts, steering, captures)
    found, visible, shares = Differences(), 0.0, list[torch.Tensor]()
    for number, (prompt, wanted, answer) in enumerate(zip(prompts, steering, answers, strict=True)):
        expected = subject.follow(prompt, answer, wanted)
        layer = wanted[0].layer
        before, after = expected.streams.before[layer], expected.streams.after[layer]
        steered = (after != before).any(1)
        if steered.any():
            change = root_mean_square(distances(after[steered], before[steered]))
            visible = max(visible, float(change) / expected.allowed[layer])
        for one in answer.captured:
            found.take_captured(one, expected, f"with positions {wanted[0].positions} ")
            if one.layer == layer:
                shares.append(_shares(one, before, after))
        found.take_tokens(answer, expected, len(prompt), f"answer {number}")
    if visible < SEEN:
        return unchecked(name, "it changes these streams by less than rounding does")
    return _with_share(found.line(name), float(torch.cat(shares).median()), subject.standard.share)


def _shares(found: Captured, before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """How much of the change was made, for the half of the positions that are to be changed the most."""
    places = list(found.positions)
    asked = after[places] - before[places]
    lengths = asked.norm(dim=1)
    changed = (lengths > 0) & (lengths >= lengths[lengths > 0].median()) if lengths.any() else lengths > 0
    asked = asked[changed]
    made = found.values[changed] - before[places][changed]
    return (made * asked).sum(1) / asked.square().sum(1)


def _with_share(line: Line, share: float, allowed: float) -> Line:
    """The line of an operation, half of whose positions were changed by at least `share` of what was asked.

    Rounding leaves that share alone, so it shows a factor that is lost in the tolerance of single rows.
    """
    figures = {**line.figures, "share": share, "share_tolerance": allowed}
    if abs(share - 1) <= allowed:
        return replace(line, figures=figures)
    says = f"{line.says}; the change is {share:.4g} times what was asked for"
    return Line(line.name, Outcome.DIFFERS, says, figures)
