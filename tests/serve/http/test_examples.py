"""The example of a client, against a server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

CLIENT = Path(__file__).parents[3] / "docs" / "examples" / "http_client.py"


def test_a_client_gets_a_plain_and_a_steered_answer(server: Any) -> None:
    command = [sys.executable, "-P", CLIENT, "3", "--alpha", "1.5", "--url", server.url]
    said = subprocess.check_output(command, text=True, timeout=200)
    plain, _, steered = said.partition("steered: ")
    assert plain.startswith("plain: ")
    assert "applied" not in plain
    assert "'alpha': 1.5" in steered.partition("applied: ")[2]
