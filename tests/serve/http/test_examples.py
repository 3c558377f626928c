"""The example of a client, against a server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CLIENT = Path(__file__).parents[3] / "docs" / "examples" / "http_client.py"


def test_a_client_gets_a_plain_and_a_steered_answer(server: Any) -> None:
    command = [sys.executable, "-P", CLIENT, "3", "--alpha", "1.5", "--url", server.url]
    said = subprocess.check_output(command, text=True, timeout=200)
    plain, _, steered = said.partition("steered: ")
    assert plain.startswith("plain: ")
    assert "applied" not in plain
    assert "'alpha': 1.5" in steered.partition("applied: ")[2]
    assert [line.partition(": ")[0] for line in said.splitlines()] == ["plain", "steered", "applied"]


@pytest.mark.usefixtures("starts_vllm")
def test_a_client_names_one_of_several_saes(
    serve_bare: Callable[..., Any], served_model: Path, make_sae: Callable[..., Path], tmp_path: Path
) -> None:
    saes = [str(make_sae(tmp_path / name, layer)) for name, layer in (("a", 0), ("b", 1))]
    with serve_bare(ckpt=str(served_model), sae=saes) as server:
        command = [sys.executable, "-P", CLIENT, "3", "--alpha", "1.5", "--sae", "b", "--url", server.url]
        assert "'sae': 'b'" in subprocess.check_output(command, text=True, timeout=200)


@pytest.mark.long
def test_where_no_server_is_there_the_example_says_so_in_one_line() -> None:
    asked = [sys.executable, "-P", str(CLIENT), "3", "--url", "http://127.0.0.1:9"]
    done = subprocess.run(asked, check=False, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "no server answers at http://127.0.0.1:9; start one: morfi serve --ckpt M_100 --latents RUN"
    ]
