"""Work in units that an engine does one after the other, and several engines at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

from morfi.engine.protocol import Engine
from morfi.terminal import Say

UnitT = TypeVar("UnitT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Done(Generic[UnitT, ResultT]):
    """A unit of work and its result."""

    unit: UnitT
    result: ResultT


@dataclass(frozen=True, slots=True)
class Span:
    """A time on the clock of `time.monotonic`, in seconds."""

    begun: float
    ended: float

    @classmethod
    def since(cls, begun: float) -> Span:
        """From `begun` until now."""
        return cls(begun, time.monotonic())

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.ended - self.begun


@runtime_checkable
class Several(Protocol):
    """An engine that is several."""

    def share_out(
        self, groups: Iterable[Sequence[UnitT]], work: Callable[[Engine, UnitT], ResultT], say: Say
    ) -> Iterator[Done[UnitT, ResultT]]:
        """As the function of this name."""
        ...


def share_out(
    engine: Engine,
    groups: Iterable[Sequence[UnitT]],
    work: Callable[[Engine, UnitT], ResultT],
    say: Say,
) -> Iterator[Done[UnitT, ResultT]]:
    """Does `work` for every unit, in order of their ends: one after the other, or by several engines.

    The units of a group have something in common that an engine keeps, such as a checkpoint: one engine does
    them, and others help when no group is left. `groups` are asked for in the caller's thread as they are
    needed, and there too stands what is done with the results. `work` may run in another thread, and, where
    an engine is lost, which `say` is told, again with another one: it changes nothing but its engine.
    """
    if isinstance(engine, Several):
        yield from engine.share_out(groups, work, say)
        return
    for group in groups:
        for unit in group:
            yield Done(unit, work(engine, unit))
