"""Units of work that wait for an engine: those of a group go to one engine while there are others."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Generic

from morfi.engine.several import UnitT

_NOBODY = -1


class Line(Generic[UnitT]):
    """The units of `groups` that are left to do; a group is asked for when an engine needs it."""

    def __init__(self, groups: Iterable[Sequence[UnitT]]) -> None:
        self._groups = iter(groups)
        self._begun: dict[int, deque[UnitT]] = {}  # what is left of the group that each engine has begun
        self._again: deque[UnitT] = deque()

    def next_for(self, engine: int) -> UnitT | None:
        """The unit that the engine of this number does next; None where nothing is left.

        First one that another engine lost, then the next of its own group, then the first of a new group;
        when all are begun, the last of the one that has most left.
        """
        if self._again:
            return self._again.popleft()
        own = self._begun.setdefault(engine, deque())
        if own or self._begin(own):
            return own.popleft()
        longest = max(self._begun.values(), key=len)
        return longest.pop() if longest else None

    def put_back(self, unit: UnitT) -> None:
        """Has a unit done again, before all others."""
        self._again.append(unit)

    def is_empty(self) -> bool:
        """Whether nothing is left."""
        waits = self._again or any(self._begun.values())
        return not (waits or self._begin(self._begun.setdefault(_NOBODY, deque())))

    def _begin(self, own: deque[UnitT]) -> bool:
        """Fills `own` with the next group that has a unit; false where there is none."""
        while not own and (group := next(self._groups, None)) is not None:
            own.extend(group)
        return bool(own)
