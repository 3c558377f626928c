"""Positions: a steering changes just those that it names."""

from __future__ import annotations

from collections.abc import Iterator

from morfi.engine.operations import ADD
from morfi.engine.protocol import Completion
from morfi.engine.steering import NAMED_POSITIONS, Capture, Positions, spans, within
from morfi.verification.lines import Line, Outcome, attempt, unchecked
from morfi.verification.subject import Subject

CHOSEN: Positions = (0, (2, 4), (-2, None))


def check_positions(subject: Subject) -> Iterator[Line]:
    """For each way to name positions, which ones a steering changes."""
    for positions in (*NAMED_POSITIONS, CHOSEN):
        name = f"steering at positions: {positions if isinstance(positions, str) else 'chosen'}"
        yield attempt(name, _checked, subject, name, positions)


def _checked(subject: Subject, name: str, positions: Positions) -> Line:
    """The line of requests that are asked twice: captured before the steering, and after it."""
    layer = subject.n_layers // 2
    captures = [Capture((layer,), "all", before=before) for before in (True, False)]
    wanted = subject.steering(ADD, layer, positions=positions)
    n_meant, n_looked, wrong = 0, 0, ""
    for prompt in subject.prompts:
        before, after = subject.ask([prompt] * 2, [[wanted]] * 2, captures)
        changed = _changed(before, after, 0.1 * abs(wanted.strength))
        meant = {
            place
            for start, stop in within(spans(positions, len(prompt)), 0, len(changed))
            for place in range(start, stop)
        }
        n_looked += len(changed)
        n_meant += len(meant)
        found = {place for place, is_changed in enumerate(changed) if is_changed}
        if found != meant:
            wrong = wrong or f"changed were {sorted(found)}, asked for {sorted(meant)}"
    if not n_meant:
        return unchecked(name, "no answer had such a position")
    says = wrong or f"{n_meant} of {n_looked} positions changed, all asked for"
    figures = {"positions": n_looked, "steered": n_meant}
    return Line(name, Outcome.DIFFERS if wrong else Outcome.HOLDS, says, figures)


def _changed(before: Completion, after: Completion, least: float) -> list[bool]:
    """For each position that both answers share, whether the stream after its steering is another one."""
    n = next(
        (k for k, (a, b) in enumerate(zip(before.token_ids, after.token_ids, strict=False)) if a != b),
        min(len(before.token_ids), len(after.token_ids)),
    )
    shared = len(before.captured[0].positions) - len(before.token_ids) + 1 + n
    rows = min(shared, len(before.captured[0].positions), len(after.captured[0].positions))
    off = (after.captured[0].values[:rows] - before.captured[0].values[:rows]).norm(dim=1)
    return [bool(one > least) for one in off]
