"""The engine in an actor's process, and what it answers to the process that asks it."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.errors import EngineDiedError, InputError, MorfiError, reason_of

if TYPE_CHECKING:
    from morfi.checkpoints import Checkpoint
    from morfi.engine.protocol import Engine, StartEngine


@dataclass(frozen=True, slots=True)
class Refused:
    """Why the engine, which goes on, did not do what it was asked; `is_input` as of InputError."""

    reason: str
    is_input: bool


@dataclass(frozen=True, slots=True)
class Died:
    """Why the engine does nothing more."""

    reason: str


@dataclass(frozen=True, slots=True)
class Started:
    """The settings and the device of an engine, and the id of its process."""

    settings: Mapping[str, Any]
    device: str
    pid: int


class _AbandonedError(Exception):
    """What a capture is for has failed elsewhere."""


class EngineActor:
    """One engine, for as long as the process lives."""

    def __init__(self, path: Sequence[str], cores: Sequence[int], environment: Mapping[str, str]) -> None:
        """Makes the process like the one that asks: its modules, and on a CPU cores of its own.

        Ray adds the working folder to the path, gives every actor one thread, and ties it to no core. Numbers
        of threads count when torch is imported, so nothing before imports it.
        """
        sys.path[:] = path
        os.environ.update(environment)
        tempfile.tempdir = None  # asked for anew, where Ray has asked before
        if cores:
            os.sched_setaffinity(0, cores)
        self._open = contextlib.ExitStack()
        self._shards = contextlib.ExitStack()
        self._engine: Engine

    def start(self, start_engine: StartEngine, checkpoint: Checkpoint, **how: Any) -> Any:
        """Starts the engine."""

        def started() -> Started:
            self._engine = self._open.enter_context(start_engine(checkpoint, **how))
            return Started(self._engine.settings, self._engine.device, os.getpid())

        return _answer(started)

    def call(self, name: str, *given: Any, **how: Any) -> Any:
        """The answer of a method of the engine."""
        return _answer(lambda: getattr(self._engine, name)(*given, **how))

    def open_shards(self, folder: Path) -> Any:
        """From now on what is captured goes to `folder`."""
        return _answer(lambda: self._shards.enter_context(self._engine.shards(folder)))

    def close_shards(self, *, whole: bool) -> Any:
        """Ends `folder`, or removes it where it is not `whole`."""

        def close() -> None:
            if whole:
                self._shards.close()
                return
            with contextlib.suppress(_AbandonedError), self._shards:
                raise _AbandonedError

        return _answer(close)


def _answer(work: Callable[[], Any]) -> Any:
    """The result of `work`, or a record of what it raised: exceptions of any class do not reach others whole.

    Whatever is no MorfiError leaves an engine in a state that nobody knows.
    """
    try:
        return work()
    except EngineDiedError as error:
        return Died(str(error))
    except MorfiError as error:
        return Refused(str(error), isinstance(error, InputError))
    except Exception as error:  # noqa: BLE001 - told to whoever asks, who ends this process
        traceback.print_exc()
        return Died(reason_of(error))
