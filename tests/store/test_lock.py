"""Locks on the file: who holds one is named."""

from __future__ import annotations

import os
import threading
import time

import duckdb
import pytest
from answered_run import completions
from child_process import child, line_of

from morfi.errors import InputError
from morfi.store import Store
from morfi.store.file import lock_holder


@pytest.mark.long
def test_a_lock_of_another_process_is_waited_for_then_named(store: Store) -> None:
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('held', flush=True); sys.stdin.read(1)"
    with child(code, store.path) as holder:
        assert line_of(holder) == "held"
        for use in (lambda: store.runs(1), lambda: store.write_completions(completions(2, 1))):
            start = time.monotonic()
            with pytest.raises(
                InputError, match=rf"locked by PID {holder.pid} \(.*duckdb\.connect"
            ) as refused:
                use()
            assert 0.1 < time.monotonic() - start < 5
            assert "\n" not in str(refused.value)
        patient = Store(store.path, lock_timeout_s=20)
        release = threading.Timer(0.3, holder.kill)
        release.start()
        patient.write_completions(completions(2, 1))
        release.join()
    assert store.summary("last").n_done == 3


def test_a_connection_of_the_same_process_is_named(store: Store) -> None:
    own = duckdb.connect(str(store.path))
    with pytest.raises(
        InputError, match=rf"locked by another connection in this process \(PID {os.getpid()}"
    ):
        store.runs(1)
    own.close()
    assert len(store.runs(1)) == 1


@pytest.mark.parametrize(
    ("message", "holder"),
    [
        ("Conflicting lock is held in /bin/x (PID 4194399). See", "PID 4194399 (/bin/x)"),
        ("Conflicting lock is held in /a b/x y (PID 4194399) by user z.", "PID 4194399 (/a b/x y)"),
        ("Conflicting lock is held in PID 4194399.", "PID 4194399"),
        ("Could not set lock on file: Resource temporarily unavailable", "another process"),
        ("PID", "another process"),
    ],
)
def test_the_holder_is_read_from_any_wording(message: str, holder: str) -> None:
    assert lock_holder(message) == holder
