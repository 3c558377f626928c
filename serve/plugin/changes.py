"""Changes made by steps, told to their requests once known, position by position, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from morfi.serve.plugin.steps import Steps
from morfi.serve.plugin.work import Steered


@dataclass(frozen=True, slots=True)
class _Note:
    """The kernel's report on each row of a step; None where that comes with the proof of step `number`."""

    steered: Steered
    number: int
    changed: Sequence[int] | None


class Changes:
    """The steps of one worker whose requests have not been told yet."""

    def __init__(self) -> None:
        self._notes: deque[_Note] = deque()

    def add(self, steered: Steered, changed: Sequence[int] | None, steps: Steps | None) -> None:
        """A step that had work and has just ended; None where a GPU has not said yet what it changed."""
        self._notes.append(_Note(steered, 0 if steps is None else steps.last, changed))
        self.tell(steps)

    def tell(self, steps: Steps | None) -> None:
        """Tells requests what was changed in steps that are known to have done their work."""
        while self._notes:
            note = self._notes[0]
            changed = note.changed
            if changed is None:
                assert steps is not None
                if note.number > steps.proven:
                    return
                changed = steps.changed.pop(note.number)
            n_rows = max((first_row + count for _, first_row, _, count in note.steered), default=0)
            changed = [*changed, *[0] * (n_rows - len(changed))]
            for live, first_row, start, count in note.steered:
                known = live.first + len(live.changed) - start  # computed before, and preempted
                live.changed.extend([0] * -known)  # steps without work
                live.changed.extend(changed[first_row + max(0, known) : first_row + count])
            self._notes.popleft()
