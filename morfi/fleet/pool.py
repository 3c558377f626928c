"""Several engines that share out work: units go to whichever is free, and a lost engine's to another."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from morfi.engine.protocol import Completion, Engine, Sampling
from morfi.engine.several import Done, ResultT, UnitT
from morfi.errors import MorfiError
from morfi.fleet.line import Line
from morfi.terminal import Say

if TYPE_CHECKING:
    from morfi.checkpoints import Checkpoint
    from morfi.engine.directions import DecoderRows, Direction, SaeLatents

MOST_LOST = 3  # engines by one unit, which is then at fault itself
NONE_LEFT = "no engine is left; -v shows the last messages of each"


class EngineLostError(Exception):
    """An engine is gone, or answers no more; what it was asked another one can be."""


class Starter(Protocol):
    """Starts engines in processes of their own."""

    def start(self, number: int) -> Engine:
        """Engine `number`, whose methods raise EngineLostError once its process is gone; takes seconds."""
        ...

    def end(self, number: int) -> None:
        """Ends the process of engine `number`, whatever it does; what waits for it is told so."""
        ...


class _Reporting:
    """An engine that says what has ended where the work is shared out, not in its own thread."""

    def __init__(self, engine: Engine, put: Callable[[Callable[[], None]], None]) -> None:
        self.engine, self._put = engine, put
        self.settings, self.device = engine.settings, engine.device
        self.register, self.load_checkpoint = engine.register, engine.load_checkpoint
        self.reset_prefix_cache, self.shards = engine.reset_prefix_cache, engine.shards

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        on_finished: Callable[[int], None] | None = None,
        **how: Any,
    ) -> list[list[Completion]]:
        """As the engine does."""
        if on_finished is None:
            return self.engine.generate(prompts, sampling, **how)
        report = on_finished
        return self.engine.generate(prompts, sampling, lambda n: self._put(partial(report, n)), **how)


@dataclass(slots=True)
class _Seat:
    """The place of one engine, with the thread that waits for it."""

    number: int
    engine: _Reporting | None = None
    is_starting: bool = False
    unit: Any = None  # that the engine does
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=1))


@dataclass(frozen=True, slots=True)
class _Ended:
    """Work of a seat's thread that is over: a unit, or a start."""

    seat: _Seat
    future: Future[Any]


class Pool:
    """Engines as one: a `morfi.engine.protocol.Engine` and `morfi.engine.several.Several`.

    What it is told itself, a checkpoint to load or a direction to register, all of its engines are told, and
    those that come in place of lost ones. What it is asked itself the first engine answers.
    """

    def __init__(self, starter: Starter, n: int) -> None:
        """Starts `n` engines, numbered from 0; raises MorfiError where one cannot start."""
        self._starter = starter
        self._seats = [_Seat(number) for number in range(n)]
        self._told: dict[str, Callable[[Engine], Any]] = {}
        self._events: queue.SimpleQueue[_Ended | Callable[[], None]] = queue.SimpleQueue()
        try:
            for begun in [seat.thread.submit(self._start, seat) for seat in self._seats]:
                begun.result()
        except EngineLostError as error:
            self.close()
            raise MorfiError(f"an engine could not start: {error}") from error
        except BaseException:
            self.close()
            raise

    def share_out(
        self, groups: Iterable[Sequence[UnitT]], work: Callable[[Engine, UnitT], ResultT], say: Say
    ) -> Iterator[Done[UnitT, ResultT]]:
        """As `morfi.engine.several.share_out`; raises MorfiError where no engine is left to do a unit."""
        line, n_lost = Line(groups), dict[int, int]()
        while self._is_busy(line, work):
            event = self._events.get()
            if not isinstance(event, _Ended):
                event()
                continue
            seat = event.seat
            if seat.is_starting:
                seat.is_starting = False
                self._tell_start(event, say)
                continue
            unit, seat.unit = seat.unit, None
            try:
                result = event.future.result()
            except EngineLostError as error:
                n_lost[id(unit)] = n_lost.get(id(unit), 0) + 1
                if n_lost[id(unit)] == MOST_LOST:
                    raise MorfiError(
                        f"{MOST_LOST} engines were lost one after the other with the same questions, the "
                        f"last because {error}"
                    ) from error
                say(f"engine {seat.number + 1} is lost ({error}); another one does its work again")
                line.put_back(unit)
                self._start_again(seat)
                continue
            n_lost.pop(id(unit), None)
            self._give(seat, line, work)
            yield Done(unit, result)

    def generate(self, *asked: Any, **how: Any) -> list[list[Completion]]:
        """As the first engine does."""
        return self._first.engine.generate(*asked, **how)

    def shards(self, folder: Path) -> AbstractContextManager[None]:
        """As the first engine does."""
        return self._first.shards(folder)

    def reset_prefix_cache(self) -> None:
        """Has the first engine forget its cached prefixes."""
        self._first.reset_prefix_cache()

    def register(self, what: Direction | SaeLatents | DecoderRows) -> str:
        """Makes a direction or SAE known to every engine."""
        name = what.sha256
        self._tell(name, lambda engine: engine.register(what))
        return name

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Has every engine serve `checkpoint`."""
        self._tell("checkpoint", lambda engine: engine.load_checkpoint(checkpoint))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of each engine."""
        return self._first.settings

    @property
    def device(self) -> str:
        """The device of each engine, and how many engines there are."""
        return f"{self._first.device}, {len(self._seats)} engines"

    def close(self) -> None:
        """Ends all engines and their processes."""
        for seat in self._seats:
            self._starter.end(seat.number)
        for seat in self._seats:
            seat.thread.shutdown(cancel_futures=True)

    @property
    def _first(self) -> _Reporting:
        for seat in self._seats:
            if seat.engine is not None:
                return seat.engine
        raise MorfiError(NONE_LEFT)

    def _is_busy(self, line: Line[UnitT], work: Callable[[Engine, UnitT], Any]) -> bool:
        """Gives every free engine a unit; false where all are done. Raises MorfiError where nobody can."""
        for seat in self._seats:
            if seat.engine is not None and seat.unit is None:
                self._give(seat, line, work)
        if any(seat.unit is not None for seat in self._seats):
            return True
        if line.is_empty():
            return False
        if not any(seat.is_starting for seat in self._seats):
            raise MorfiError(NONE_LEFT)
        return True

    def _give(self, seat: _Seat, line: Line[UnitT], work: Callable[[Engine, UnitT], Any]) -> None:
        """Has the engine of a seat do its next unit, if one is left."""
        seat.unit = line.next_for(seat.number)
        if seat.unit is not None and seat.engine is not None:
            self._hand_over(seat, partial(work, seat.engine, seat.unit))

    def _hand_over(self, seat: _Seat, call: Callable[[], Any]) -> None:
        """Has a seat's thread call; its end is an event."""
        future = seat.thread.submit(call)
        future.add_done_callback(lambda ended: self._events.put(_Ended(seat, ended)))

    def _start(self, seat: _Seat) -> None:
        """Starts the engine of a seat, and tells it what the others know."""
        seat.engine = None
        engine = self._starter.start(seat.number)
        for tell in list(self._told.values()):
            tell(engine)
        seat.engine = _Reporting(engine, self._events.put)

    def _start_again(self, seat: _Seat) -> None:
        seat.engine, seat.is_starting = None, True
        self._starter.end(seat.number)
        self._hand_over(seat, partial(self._start, seat))

    def _tell_start(self, event: _Ended, say: Say) -> None:
        """Says how the new start of an engine ended."""
        try:
            event.future.result()
        except (EngineLostError, MorfiError) as error:
            say(f"engine {event.seat.number + 1} could not be started again: {error}")
        else:
            say(f"engine {event.seat.number + 1} is there again")

    def _tell(self, name: str, call: Callable[[Engine], Any]) -> None:
        """Calls with every engine, now or when it starts; `name` stands for what it is then told."""
        self._told[name] = call
        calls = [seat.thread.submit(self._call, seat, call) for seat in self._seats]
        for begun in calls:
            begun.result()
        self._first  # noqa: B018 - raises where none is left

    def _call(self, seat: _Seat, call: Callable[[Engine], Any]) -> None:
        """Calls with the engine of a seat, if there is one; a lost one is started again."""
        if seat.engine is None:
            return
        try:
            call(seat.engine)
        except EngineLostError:
            self._starter.end(seat.number)
            try:
                self._start(seat)
            except EngineLostError:
                self._starter.end(seat.number)
