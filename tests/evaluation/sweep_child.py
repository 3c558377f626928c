"""`morfi` in a process of its own that tests may kill, with a slow engine that knows nothing.

Arguments: the seconds that a batch takes, then those of the command.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import morfi.serve.engine
from morfi.cli import main
from morfi.engine.protocol import Completion
from morfi.engine.steering import Applied, Steering

PAUSE_S = float(sys.argv.pop(1))


class Slow:
    """Gives the same wrong answer to every prompt, after a pause."""

    settings: Mapping[str, Any] = {}
    device = "slow"

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *_: Any,
        steering: Sequence[Sequence[Steering]] | None = None,
    ) -> list[list[Completion]]:
        time.sleep(PAUSE_S)
        wrong = Completion(" no idea ", tuple(b"no idea"), "stop", 5)
        return [
            [replace(wrong, applied=tuple(Applied(one, 7) for one in wanted))]
            for wanted in steering or [()] * len(prompts)
        ]

    def register(self, what: Any) -> str:
        return str(what.sha256)

    def shards(self, folder: Path) -> contextlib.AbstractContextManager[None]:
        raise NotImplementedError

    def reset_prefix_cache(self) -> None:
        pass

    def load_checkpoint(self, checkpoint: object) -> None:
        pass


@contextlib.contextmanager
def start(*_: Any, **__: Any) -> Iterator[Slow]:
    yield Slow()


morfi.serve.engine.start_engine = start  # type: ignore[assignment]
main()
