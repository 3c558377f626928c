"""The report of a verification: its lines, and an object that may be shown to anybody."""

from __future__ import annotations

import getpass
import json
import re
import socket
from pathlib import Path

import pytest

from morfi.report.verification import line_text, summary, verification_object
from morfi.verification.lines import Line, Outcome, unchecked
from morfi.verification.verify import Verified, fault_of

HOLDS = Line("greedy answers", Outcome.HOLDS, "12 tokens by 0 (tolerance 0.001)", {"gap": 0.0})
DIFFERS = Line("capture", Outcome.DIFFERS, "4 streams by 0.5")


def subject(**engine: object) -> Verified:
    return Verified("LlamaForCausalLM", "float32", "CPU x 2", 3, 64, engine, "float32: 0.0001")


def test_a_line_begins_with_its_outcome() -> None:
    assert line_text(HOLDS).split() == ["holds", "greedy", "answers", *HOLDS.says.split()]
    assert line_text(unchecked("swap", "PEFT is not here")).startswith("cannot be checked  swap ")
    assert summary([HOLDS, HOLDS, DIFFERS]).strip() == "3 lines: 2 holds, 1 differs"


def test_what_is_wrong_is_named() -> None:
    assert fault_of([HOLDS, unchecked("swap", "so")]) is None
    assert fault_of([HOLDS, DIFFERS]) == "1 of 2 checks differ: capture"
    assert (
        fault_of([unchecked("swap", "so"), Line("speed", Outcome.MEASURED, "1")])
        == "nothing could be checked"
    )


@pytest.mark.parametrize(
    "said",
    [
        "vLLM could not start on {folder}: no room",
        "{folder}/config.json is missing",
        'there is no folder "{folder}"',
        "({home}/models/llama-3/model.safetensors)",
        "/mnt/data/models/x.safetensors, ~/models, file:/etc/passwd",
        "worker of {user} on {host} died",
    ],
)
def test_the_object_names_no_path_user_or_host(said: str, tmp_path: Path) -> None:
    folder = tmp_path / "my secret model"
    folder.mkdir()
    places = {"folder": folder, "home": Path.home(), "user": getpass.getuser(), "host": socket.gethostname()}
    lines = [HOLDS, unchecked("swap", said.format(**places))]
    found = verification_object(subject(download_dir=str(folder)), lines, None, str(folder))
    text = json.dumps(found["lines"]) + json.dumps(found["engine"])
    for private in ("secret", str(tmp_path), str(Path.home()), "/mnt", "~", "/etc", socket.gethostname()):
        assert private not in text
    assert getpass.getuser() not in re.findall(r"\w+", text)


def test_rates_and_names_of_the_hub_are_left_as_they_are() -> None:
    line = Line("speed: steered", Outcome.MEASURED, "45 requests/s of 1/2, Qwen/Qwen3-0.6B")
    found = verification_object(subject(max_num_seqs=8), [line], None, "Qwen/Qwen3-0.6B")
    assert found["lines"][0]["says"] == line.says
    assert found["engine"] == {"max_num_seqs": 8}
