"""`morfi` in a process of its own that tests may kill, with a slow engine that knows some of the questions.

Arguments: the seconds that a batch takes, a file of questions, then those of the command.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import morfi.serve.engine
from morfi.cli import main

sys.path.append(str(Path(__file__).parents[1]))
from fake_engine import FakeEngine


class Ordered(FakeEngine):
    """An engine whose residual streams depend on the checkpoint, not on how many were loaded before it."""

    def place(self) -> float:
        """1 for level 0, 2 for level 50, 3 for level 100; 0 for the base model."""
        found = re.search(r"level-(\d+)", self.served)
        return 0.0 if found is None else 1 + int(found[1]) / 50


pause_s, data = float(sys.argv.pop(1)), Path(sys.argv.pop(1))
rows = [json.loads(line) for line in data.read_text().splitlines()]
known = {row["question"]: row["answers"][0] for place, row in enumerate(rows) if place % 4 < 2}
morfi.serve.engine.start_engine = Ordered(known, pause_s=pause_s)  # type: ignore[assignment]
main()
