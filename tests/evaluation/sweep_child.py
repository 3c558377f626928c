"""`morfi` in a process of its own that tests may kill, with a slow engine that knows nothing.

Arguments: the seconds that a batch takes, then those of the command.
"""

from __future__ import annotations

import sys
from pathlib import Path

import morfi.serve.engine
from morfi.cli import main

sys.path.append(str(Path(__file__).parents[1]))
from fake_engine import FakeEngine

morfi.serve.engine.start_engine = FakeEngine({}, pause_s=float(sys.argv.pop(1)))  # type: ignore[assignment]
main()
