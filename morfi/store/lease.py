"""The lease of the process that works on a run: taken, renewed, given back, and refused to a second one.

A lease lies in the store, so any host that reads the store sees who works on what. It runs out by itself
when nothing renews it, whatever happened to its process. Where reader and process share a boot and a PID
namespace, the process itself is looked at: a killed one frees its run at once, and one that runs keeps it,
however long it was silent.

Clocks of several hosts may differ. By less than `LEASE_S` that changes only when a lease counts as run out.
By more, a live process can lose its run to another one; it then stops at its next write, because a lease
names its attempt: two processes never both write. So it is with a laptop that slept while another went on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.errors import InputError, MorfiError
from morfi.store.rows import read_records

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from morfi.store.records import AttemptRecord

LEASE_S = 5 * 60.0  # how long a process may give no sign of life
RENEW_S = LEASE_S / 5


@dataclass(frozen=True, slots=True)
class Lease:
    """The process that works on a run: `process` names it exactly, None where the system cannot."""

    run_id: str
    attempt: int
    host: str
    pid: int
    process: str | None
    since: datetime
    renewed_at: datetime
    expires_at: datetime

    def is_alive(self, now: datetime) -> bool:
        """Whether a process works on the run, as far as can be known here."""
        seen = is_running(self.process)
        if seen is not None:
            return seen  # whatever the clock says: it may be suspended, or wait for a disk
        lasts = self.expires_at - self.renewed_at
        return self.renewed_at - lasts < now < self.expires_at

    def refusal(self, now: datetime) -> InputError:
        """Says who works on the run, and what to do."""
        silent_s = max(0.0, (now - self.renewed_at).total_seconds())
        left_s = (self.expires_at - now).total_seconds()
        is_seen = is_running(self.process) is not None
        free = "" if is_seen else f"; if that process is gone, the run is free in {left_s:.0f} s"
        return InputError(
            f"{self.run_id} is being worked on by PID {self.pid} on {self.host} since "
            f"{self.since:%Y-%m-%d %H:%M:%S} UTC (last sign of life {silent_s:.0f} s ago); wait until it "
            f"ends, or stop it there{free}"
        )


def take(connection: DuckDBPyConnection, run_id: str, number: int, attempt: AttemptRecord) -> None:
    """Writes the lease of a new attempt, in place of one that has run out."""
    now = datetime.now(UTC)
    process = process_name(attempt.pid) if attempt.pid == os.getpid() else None
    connection.execute(
        "INSERT OR REPLACE INTO lease VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [run_id, number, attempt.host, attempt.pid, process, _plain(now), *_period(now)],
    )


def refuse_if_held(connection: DuckDBPyConnection, run_id: str) -> None:
    """Raises InputError where another process works on the run."""
    now = datetime.now(UTC)
    held = read(connection, run_id)
    if held is None or not held.is_alive(now):
        return
    if held.process is not None and held.process == process_name(os.getpid()):
        return  # this process: what it did before is over, or finds out at its next write
    raise held.refusal(now)


def keep(connection: DuckDBPyConnection, run_id: str, number: int) -> None:
    """Renews the lease of an attempt; raises MorfiError where another process has it now."""
    held = read(connection, run_id)
    if held is None or held.attempt != number:
        by = "another process" if held is None else f"PID {held.pid} on {held.host}"
        raise MorfiError(
            f"{run_id} was taken over by {by}, because this process gave no sign of life for "
            f"{LEASE_S / 60:g} minutes (was it asleep, or do the hosts' clocks differ?); it stops here, and "
            "what it had stored is kept"
        )
    connection.execute(
        "UPDATE lease SET renewed_at = ?, expires_at = ? WHERE run_id = ?",
        [*_period(datetime.now(UTC)), run_id],
    )


def give_back(connection: DuckDBPyConnection, run_id: str, number: int) -> None:
    """Takes the lease of an attempt away, if it has one still."""
    connection.execute("DELETE FROM lease WHERE run_id = ? AND attempt = ?", [run_id, number])


def read(connection: DuckDBPyConnection, run_id: str) -> Lease | None:
    """The lease of a run."""
    found = read_records(connection, Lease, "FROM lease WHERE run_id = ?", [run_id])
    return found[0] if found else None


def read_all(connection: DuckDBPyConnection) -> list[Lease]:
    """All leases."""
    return read_records(connection, Lease, "FROM lease", [])


def process_name(pid: int) -> str | None:
    """A process's name on this machine, for ever its own: boot, PID namespace, PID and time of start."""
    place = _place()
    began = _began(pid)
    return None if place is None or began is None else f"{place}/{pid}/{began}"


def is_running(process: str | None) -> bool | None:
    """Whether that process runs; None where it cannot be seen from here."""
    place = _place()
    if process is None or place is None or not process.startswith(f"{place}/"):
        return None
    pid, _, began = process.removeprefix(f"{place}/").partition("/")
    try:
        return _began_of(Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")) == began
    except (FileNotFoundError, ProcessLookupError):
        return None if _exists(int(pid)) else False
    except OSError:
        return None  # another user's, where /proc hides those


def _exists(pid: int) -> bool:
    """Whether a process has the id; /proc may hide it."""
    try:
        os.kill(pid, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _place() -> str | None:
    """The boot and the PID namespace of this process; None where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _began(pid: int) -> str | None:
    """When the process started, in ticks since boot; None for one that does not run, a zombie too."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    return _began_of(stat)


def _began_of(stat: str) -> str | None:
    state, *fields = stat.rpartition(")")[2].split()  # what stands before is the program's name
    return None if state in "ZX" else fields[18]


def _period(now: datetime) -> list[datetime]:
    return [_plain(now), _plain(now + timedelta(seconds=LEASE_S))]


def _plain(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None)
