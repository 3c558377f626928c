"""A progress for tests, which remembers what it was told."""

from __future__ import annotations


class Log:
    """A `Progress` that remembers."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.starts: list[tuple[int, int]] = []
        self.units: list[str] = []
        self.n_advanced = 0

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def start(self, n_total: int, n_done: int, unit: str) -> None:
        self.starts.append((n_total, n_done))
        self.units.append(unit)

    def advance(self, n: int) -> None:
        self.n_advanced += n
