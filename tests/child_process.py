"""Python processes that tests start, listen to and end."""

from __future__ import annotations

import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def child(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `code`, and is killed at the end of the block."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line_of(process: subprocess.Popen[str]) -> str:
    """The next line on the process's standard output, waited for."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], 30)[0], "the child process said nothing for 30 s"
    return process.stdout.readline().strip()


def tagged(tag: str) -> dict[int, str]:
    """The names of the processes that were started with "NAME=VALUE" in their environment, by their ids."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if tag.encode() in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_text()
    return found


def left(tag: str) -> dict[int, str]:
    """Those of `tagged` that do not end by themselves; on a busy machine Ray takes long to end its own."""
    until = time.monotonic() + 120
    while (found := tagged(tag)) and time.monotonic() < until:
        time.sleep(0.5)
    return found
