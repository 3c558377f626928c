"""Several engines, each of which may be lost in the middle of whatever it does."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fake_engine import FakeEngine

from morfi.engine.protocol import Completion, Engine
from morfi.errors import InputError
from morfi.fleet.pool import EngineLostError, Pool

if TYPE_CHECKING:
    from morfi.engine.protocol import StartEngine
    from morfi.fleet.ray_engines import RayStarter


class Losing(FakeEngine):
    """An engine that is lost, in the middle of a batch or at a registration, where `is_lost` says so.

    Its residual streams depend on the checkpoint, not on how many were loaded before it.
    """

    is_lost: Callable[[], bool]

    def generate(
        self, prompts: Any, sampling: Any, on_finished: Any = None, **how: Any
    ) -> list[list[Completion]]:
        found = super().generate(prompts, sampling, **how)
        self._may_be_lost()
        if on_finished is not None:
            on_finished(sum(map(len, found)))
        return found

    def register(self, what: Any) -> str:
        self._may_be_lost()
        return super().register(what)

    def place(self) -> float:
        found = re.search(r"level-(\d+)", self.served)
        return 0.0 if found is None else 1 + int(found[1]) / 50

    def _may_be_lost(self) -> None:
        if self.is_lost():
            raise EngineLostError("its process has ended")


@dataclass
class LosingEngines:
    """Starts engines like one that is given, in a pool of `n`, and remembers all of them by number."""

    like: FakeEngine = field(default_factory=lambda: FakeEngine({}))
    n: int = 2
    is_lost: Callable[[], bool] = lambda: random.random() < 0.1
    refuses: int | None = None  # the start that is refused, counted from 0
    started: list[tuple[int, Losing]] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)

    @contextlib.contextmanager
    def __call__(self, checkpoint: object, **how: object) -> Iterator[Pool]:
        with contextlib.closing(Pool(self, self.n)) as pool:
            yield pool

    def start(self, number: int) -> Engine:
        if len(self.started) == self.refuses:
            raise InputError("no such model")
        like = self.like
        engine = Losing(
            like.known, unloadable=like.unloadable, answers=like.answers, registered=like.registered
        )
        engine.is_lost = self.is_lost
        self.started.append((number, engine))
        return engine

    def end(self, number: int) -> None:
        self.ended.append(number)

    @property
    def n_lost(self) -> int:
        """The engines that came in place of others."""
        return len(self.started) - self.n


@dataclass
class Killing:
    """Starts two engines in actors of Ray, and kills one of them `n` times, at random.

    Between two kills are `longest_s` at most, but for the time in which no engine is there.
    """

    start_engine: StartEngine
    n: int
    longest_s: float = 0.5
    pids: set[int] = field(default_factory=set)
    n_killed: int = 0

    @contextlib.contextmanager
    def __call__(self, checkpoint: Any, **how: Any) -> Iterator[Pool]:
        from morfi.fleet.ray_engines import RayStarter, running_ray

        with running_ray(2) as folder:
            starter = RayStarter(self.start_engine, checkpoint, how, 2, folder)
            with contextlib.closing(Pool(starter, 2)) as pool:
                over = threading.Event()
                killer = threading.Thread(target=self._kill, args=(starter, over))
                killer.start()
                try:
                    yield pool
                finally:
                    over.set()
                    killer.join()

    def _kill(self, starter: RayStarter, over: threading.Event) -> None:
        while self.n_killed < self.n and not over.wait(random.random() * self.longest_s):
            living = [engine.started.pid for engine in starter.engines.values()]
            self.pids |= set(living)
            if living:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(random.choice(living), signal.SIGKILL)
                    self.n_killed += 1
