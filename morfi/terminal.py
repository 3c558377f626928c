"""What a person at a terminal sees of a long run, all of it on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self


class TerminalProgress:
    """Phases as lines, units of work as a bar with their rate and the time left; closes its bar on exit."""

    def __init__(self, unit: str = "answers") -> None:
        self._unit = unit
        self._bar: Any = None
        self._started = time.monotonic()

    def phase(self, text: str) -> None:
        """Prints a line: what is done now, and the seconds since the start."""
        if self._bar is not None:
            self._bar.clear()
        print(f"[{time.monotonic() - self._started:5.1f} s] {text}", file=sys.stderr, flush=True)  # noqa: T201

    def start(self, n_total: int, n_done: int) -> None:
        """Draws the bar at `n_done` of `n_total`."""
        from tqdm import tqdm

        self._bar = tqdm(
            total=n_total,
            initial=n_done,
            unit=f" {self._unit}",
            file=sys.stderr,
            smoothing=0.1,
            mininterval=0.5,
        )

    def advance(self, n: int) -> None:
        """Moves the bar by `n` units."""
        self._bar.update(n)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
