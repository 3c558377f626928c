"""Python processes that tests start, listen to and end."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
