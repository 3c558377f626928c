"""Writing to the store while a run is worked on: its lease is kept, and a file that is held is waited for."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.errors import MorfiError
from morfi.store import lease
from morfi.store.file import Locked, holding, prepare, reading, writing
from morfi.store.rows import insert_columns
from morfi.terminal import Say

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from duckdb import DuckDBPyConnection

_RENEWAL_WAITS_S = 1.0  # short, for the thread that has answers to store waits meanwhile
Insertion = tuple[str, Mapping[str, Sequence[Any]]]  # a table's name and its columns


class Work:
    """A process's work on one store: the leases that it holds, and the rows that it could not write yet.

    Outside `going_on` every use of the file waits up to `lock_timeout_s` for it and then raises `Locked`.
    Inside, rows that cannot be written yet are kept and go with the next ones, and whatever else needs the
    file waits as long as it takes, with a word.
    """

    def __init__(self, path: Path, lock_timeout_s: float) -> None:
        self.path = path
        self.lock_timeout_s = lock_timeout_s
        self._leases: dict[str, int] = {}  # attempts by run
        self._renewed = time.monotonic()
        self._kept: list[Insertion] = []
        self._said_kept = False
        self._told: list[Say] = []  # by the blocks of `going_on`, which may end in any order
        self._said_unrenewed = False

    @property
    def n_kept(self) -> int:
        """The rows that could not be written yet."""
        return sum(len(next(iter(columns.values()))) for _, columns in self._kept)

    @property
    def _say(self) -> Say | None:
        return self._told[-1] if self._told else None

    @property
    def _patience(self) -> tuple[float, Say | None]:
        return (self.lock_timeout_s, None) if self._say is None else (float("inf"), self._say)

    def prepare(self) -> None:
        """Makes the file or brings it up to date, as `file.prepare`."""
        prepare(self.path, *self._patience)

    def reading(self, *, confined: bool = False) -> AbstractContextManager[DuckDBPyConnection]:
        """A read-only connection, as `file.reading`."""
        return reading(self.path, *self._patience, confined=confined)

    def holding(self) -> AbstractContextManager[None]:
        """One connection for all that this thread does, as `file.holding`."""
        return holding(self.path, *self._patience)

    @contextlib.contextmanager
    def writing(self) -> Iterator[DuckDBPyConnection]:
        """A transaction, as `file.writing`, in which leases are renewed and rows that were kept are added."""
        with writing(self.path, *self._patience) as connection:
            self._add(connection, self._kept)
            yield connection
        self._written()

    def insert(self, table: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Adds rows; inside `going_on` at the latest when the attempt ends, where another holds the file."""
        pending = [*self._kept, (table, columns)]
        wait_s = 0.5 if self._kept else self.lock_timeout_s
        try:
            with writing(self.path, wait_s, None) as connection:
                self._add(connection, pending)
        except KeyboardInterrupt:  # whether it waited or wrote: rows that are there already are left out
            if self._say is not None:
                self._kept = pending
            raise
        except Locked as error:
            if self._say is None:
                raise
            self._kept = pending
            if not self._said_kept:
                self._say(f"{error.reason}; what is answered is kept until it lets go, and the run goes on")
                self._said_kept = True
            return
        self._written()

    def taken(self, run_id: str, number: int) -> None:
        """From now on the attempt's lease is renewed with every write."""
        self._leases[run_id] = number

    @contextlib.contextmanager
    def going_on(self, say: Say) -> Iterator[None]:
        """For the time that a run is worked on: its lease is renewed, and a file that is held is waited for.

        `say` is told what is waited for.
        """
        over = threading.Event()
        self._told.append(say)
        renewing = threading.Thread(target=self._renew_until, args=(over, say), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            over.set()
            renewing.join(timeout=2.0)
            self._told.remove(say)

    def end(self, run_id: str, number: int, columns: Mapping[str, Sequence[Any]], *, wait: bool) -> None:
        """Adds how an attempt ended, with all rows that were kept, and gives its lease back."""
        self._leases.pop(run_id, None)
        with writing(self.path, *(self._patience if wait else (self.lock_timeout_s, None))) as connection:
            held = lease.read(connection, run_id)
            if held is None or held.attempt != number:
                self._kept = []  # another process answers the same
            self._add(connection, self._kept)
            insert_columns(connection, "attempt_end", columns)
            lease.give_back(connection, run_id, number)
        self._written()

    def _add(self, connection: DuckDBPyConnection, rows: Sequence[Insertion]) -> None:
        for run_id, number in self._leases.items():
            lease.keep(connection, run_id, number)
        for table, columns in rows:
            insert_columns(connection, table, columns)

    def _written(self) -> None:
        self._kept, self._said_kept = [], False
        self._renewed = time.monotonic()

    def _renew_until(self, over: threading.Event, say: Say) -> None:
        while not over.wait(lease.RENEW_S / 4):
            if time.monotonic() - self._renewed < lease.RENEW_S or not self._leases:
                continue
            try:
                with writing(self.path, _RENEWAL_WAITS_S, None) as connection:
                    for run_id, number in [*self._leases.items()]:
                        lease.keep(connection, run_id, number)
                self._renewed, self._said_unrenewed = time.monotonic(), False
            except MorfiError:
                pass  # hinders the next write too, which says so; nobody takes a run while a file is held
            except Exception as error:  # noqa: BLE001 - of DuckDB or the system: the next renewal may succeed
                if not self._said_unrenewed:
                    say(f"{self.path}: the lease was not renewed, which is tried again: {error}")
                self._said_unrenewed = True
