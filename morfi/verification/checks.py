"""Answers, captures and steering of an engine against the same model in transformers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from morfi.engine.operations import OPERATIONS
from morfi.engine.protocol import Completion
from morfi.engine.steering import MAX_CAPTURED_LAYERS, MAX_ENTRIES, Capture, Positions, Steering
from morfi.verification.arithmetic import KNOWN
from morfi.verification.differences import Differences
from morfi.verification.lines import Line, attempt, unchecked
from morfi.verification.reference import Streams
from morfi.verification.subject import SEEN, Prompt, Subject
from morfi.verification.tolerance import distances

if TYPE_CHECKING:
    import torch

POSITIONS: tuple[Positions, ...] = ("all", "prompt", "generated")


def check_answers(subject: Subject) -> Iterator[Line]:
    """Greedy answers: every token is the reference's likeliest, or as likely within the tolerance."""
    yield attempt("greedy answers", _answers, subject)


def _answers(subject: Subject) -> Line:
    found = Differences(subject.tolerance)
    answers = subject.ask(subject.prompts, n_tokens=16)
    for number, (prompt, answer) in enumerate(zip(subject.prompts, answers, strict=True)):
        found.take_tokens(answer, subject.follow(prompt, answer).logits, len(prompt), f"answer {number}")
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
    found, mistaken = Differences(subject.tolerance), ""
    for prompt, answer in zip(prompts, answers, strict=True):
        streams = subject.follow(prompt, answer)
        for one in answer.captured:
            found.take_captured(one, streams.after)
            mistaken = mistaken or _mistaken(subject, one.layer, one.values, streams)
    return found.line("capture", mistaken)


def _mistaken(subject: Subject, layer: int, values: torch.Tensor, streams: Streams) -> str:
    """Which other layer's stream was given for that of `layer`; "" for none."""
    for other, expected in enumerate(streams.after):
        allowed = subject.tolerance.streams[other]
        if other != layer and float(distances(values, expected[: len(values)]).max()) <= allowed:
            return f"after layer {layer} came what transformers has after layer {other}"
    return ""


def _capture_before(subject: Subject) -> Line:
    adding = next(one for one in OPERATIONS.values() if one.is_sum)
    steering = [[subject.steering(adding, layer)] for layer in subject.some_layers]
    prompts = [prompt for prompt, _ in zip(itertools.cycle(subject.prompts), steering, strict=False)]
    captures = [Capture((one.layer,), "all", before=True) for (one,) in steering]
    found = Differences(subject.tolerance)
    for prompt, wanted, answer in zip(
        prompts, steering, subject.ask(prompts, steering, captures), strict=True
    ):
        streams = subject.follow(prompt, answer, wanted)
        for one in answer.captured:
            found.take_captured(one, streams.before)
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
    prompts: list[Prompt] = list(itertools.islice(itertools.cycle(subject.prompts), len(steering)))
    last = subject.n_layers - 1
    captures = [Capture(tuple(dict.fromkeys((one[0].layer, last))), "all") for one in steering]
    answers = subject.ask(prompts, steering, captures)
    found, visible, more = Differences(subject.tolerance), 0.0, ""
    for number, (prompt, wanted, answer) in enumerate(zip(prompts, steering, answers, strict=True)):
        streams = subject.follow(prompt, answer, wanted)
        layer = wanted[0].layer
        change = distances(streams.after[layer], streams.before[layer])
        visible = max(visible, float(change.max()) / subject.tolerance.streams[layer])
        where = f"with positions {wanted[0].positions} "
        for one in answer.captured:
            found.take_captured(one, streams.after, where)
        found.take_tokens(answer, streams.logits, len(prompt), f"answer {number}")
        more = more or _share(answer, streams, layer)
    if visible < SEEN:
        return unchecked(name, "it changes these streams by less than rounding does")
    return found.line(name, more)


def _share(answer: Completion, streams: Streams, layer: int) -> str:
    """How much of the change that was asked for was made, in words; "" for all of it, or nothing asked."""
    one = next(one for one in answer.captured if one.layer == layer)
    places = list(one.positions)
    before, after = streams.before[layer][places], streams.after[layer][places]
    asked = (after - before).flatten()
    if not float(asked.square().sum()):
        return ""
    share = float((one.values - before).flatten() @ asked / asked.square().sum())
    return "" if abs(share - 1) < 0.01 else f"the change is {share:.3g} times what was asked for"
