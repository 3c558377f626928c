"""The terminal, or a program at the other end: progress, the standard streams, and signals.

Progress goes to standard error. The streams are taken as the surroundings give them: full, closed, in any
encoding.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import IO, Any, Protocol, Self

from morfi.errors import MorfiError, Terminated

_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_IN_MEMORY = 1 << 24  # bytes of an answer that are kept in memory, not in a temporary file
_ONE_SIGNAL_S = 2.0  # `timeout` sends its signal to the process and to its group: twice at once


# Told one thing that happens, in words: `Progress.phase` is one.
Say = Callable[[str], None]


class Progress(Protocol):
    """Told what happens in a long run: phases by name, and units of work (answers, examples) as they end."""

    def phase(self, text: str) -> None:
        """A new phase begins."""
        ...

    def start(self, n_total: int, n_done: int, unit: str) -> None:
        """Work begins; `n_done` of `n_total` units, each called `unit`, were done before."""
        ...

    def advance(self, n: int) -> None:
        """`n` more units are done."""
        ...


class TerminalProgress:
    """Phases as lines, each kind of work as a bar with its rate and the time left; closes them."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._started = time.monotonic()

    def phase(self, text: str) -> None:
        """Prints a line: what is done now, and the seconds since the start."""
        if self._bar is not None:
            self._bar.clear()
        line = in_a_line(f"[{time.monotonic() - self._started:5.1f} s] {text}")
        print(line, file=sys.stderr, flush=True)  # noqa: T201

    def start(self, n_total: int, n_done: int, unit: str) -> None:
        """Draws a bar at `n_done` of `n_total`, below that of the work before."""
        from tqdm import tqdm

        self._close()
        self._bar = tqdm(
            total=n_total,
            initial=n_done,
            unit=f" {unit}",
            file=sys.stderr,
            smoothing=0.1,
            mininterval=0.5,
        )

    def advance(self, n: int) -> None:
        """Moves the bar by `n` units; a full one is closed."""
        self._bar.update(n)
        if self._bar.n >= self._bar.total:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class OutputError(MorfiError):
    """Standard output takes no more."""


@contextlib.contextmanager
def to_reader() -> Iterator[None]:
    """A block that writes to standard output and does nothing else.

    It ends quietly when the reader has gone, as in `morfi export RUN | head`. Raises OutputError where
    standard output is closed, or cannot be written.
    """
    if sys.stdout is None:
        raise OutputError("standard output is closed")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        to_nowhere(sys.stdout)
    except OSError as error:
        to_nowhere(sys.stdout)
        raise OutputError(f"standard output cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def spooled() -> Iterator[IO[bytes]]:
    """A file that goes to standard output when the block ends without an error.

    Whatever the block holds open, such as the store, is let go before a slow reader has read everything.
    """
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as file:
        yield file
        file.seek(0)
        with to_reader():
            shutil.copyfileobj(file, sys.stdout.buffer)


def takes_unicode() -> bool:
    """Whether standard output's encoding can say everything."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return encoding.lower().replace("-", "").replace("_", "").startswith("utf")


def in_a_line(text: str) -> str:
    """The text with its line breaks and other control characters written as escapes."""
    return _CONTROLS.sub(lambda one: one[0].encode("unicode_escape").decode(), text)


@contextlib.contextmanager
def steady_streams() -> Iterator[None]:
    """Standard streams that no surroundings break, for the length of the block.

    A closed one is opened to nowhere, lest a file (the store) get its number and be written to by a library.
    Characters that an encoding does not have are written as escapes. What standard error does not take is
    lost, for nobody could be told of it: the work goes on.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    before = sys.stderr
    sys.stderr = _Forgiving(before)
    try:
        yield
    finally:
        sys.stderr = before


class _Forgiving:
    """A text stream that loses what it cannot write."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"expected text, got {type(text).__name__}")  # as any text stream: click asks so
        if self._stream is not None:
            try:
                self._stream.write(text)
            except OSError:
                to_nowhere(self._stream)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except OSError:
                to_nowhere(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Terminated` in the block, where nothing else was made of them (`nohup`)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []

    def end(number: int, _: FrameType | None) -> None:
        if first and time.monotonic() - first[-1] < _ONE_SIGNAL_S:
            return
        first.append(time.monotonic())
        raise Terminated(number, signal.Signals(number).name)

    taken = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def to_nowhere(stream: Any) -> None:
    """Loses all that is written to the stream from now on, and what it still holds when the process ends.

    Python has None in place of a stream that was closed when it started.
    """
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError):  # a stream without a file has nothing to lose
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
