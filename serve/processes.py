"""Keeps what vLLM prints off the terminal, and names the death of its processes."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

from morfi.errors import EngineDiedError, InputError

_SHOWN = 1 << 20  # bytes of what was kept back
_FAILED = "Worker failed with error"  # how vLLM begins what it raises for an error in a worker process


@contextlib.contextmanager
def naming_death() -> Iterator[None]:
    """Makes the failure of another process of vLLM's in the block an EngineDiedError."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError as error:
        raise EngineDiedError(
            "vLLM's engine has died, so this call gives no answer; -v shows its last messages, which say "
            "why. Start the engine again"
        ) from error
    except RuntimeError as error:
        if not str(error).startswith(_FAILED):
            raise
        raise EngineDiedError(f"{error}; this call gives no answer. Start the engine again") from error


@contextlib.contextmanager
def quiet(verbose: bool, log: IO[bytes] | None = None) -> Iterator[None]:
    """Keeps what vLLM, torch and their C++ parts print off the terminal, unless `verbose`.

    Standard output always goes to standard error: it belongs to the command's own answer. What was kept back
    is printed when the block fails, so that no reason for a failure is ever lost. Processes that are started
    in the block write to `log`, if it is given, for as long as they live.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved_out, saved_err = os.dup(1), os.dup(2)
    with contextlib.ExitStack() as opened:
        log = log or opened.enter_context(tempfile.TemporaryFile())
        os.dup2(saved_err if verbose else log.fileno(), 1)
        os.dup2(saved_err if verbose else log.fileno(), 2)
        try:
            yield
        except (InputError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            os.write(saved_err, kept_back(log))
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved_out, 1)
            os.dup2(saved_err, 2)
            os.close(saved_out)
            os.close(saved_err)


def kept_back(log: IO[bytes]) -> bytes:
    """The end of what `quiet` kept in `log`, wherever its writers are."""
    size = os.fstat(log.fileno()).st_size
    return os.pread(log.fileno(), _SHOWN, max(0, size - _SHOWN))
