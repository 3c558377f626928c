"""Commands in processes of their own: what they import, how soon they answer, how they end."""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from morfi.store import Store

pytestmark = pytest.mark.usefixtures("isolated_cache")

REPOSITORY = Path(__file__).resolve().parents[2]


def in_new_process(code: str) -> str:
    """What `code` prints in a process of its own, in the repository's folder."""
    line = [sys.executable, "-P", "-c", code]
    done = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['morfi', 'eval', '--help']\n"
        "from morfi.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: print(stop.code, *{name.partition('.')[0] for name in sys.modules})\n"
    )
    last = in_new_process(code).splitlines()[-1].split()
    assert last[0] == "0"
    heavy = {"torch", "numpy", "duckdb", "pyarrow", "scipy", "vllm", "transformers", "safetensors", "tqdm"}
    assert heavy.isdisjoint(last[1:])
    assert "click" in last


def test_help_answers_in_under_half_a_second() -> None:
    times_s = []
    for _ in range(5):
        begun = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-P", "-m", "morfi", "--help"], capture_output=True, text=True, check=True
        )
        times_s.append(time.perf_counter() - begun)
        assert "Usage: morfi" in process.stdout
    assert statistics.median(times_s) < 0.5


@pytest.mark.parametrize("name", ["kernels", "serve", "cli"])
def test_no_part_of_the_repository_is_importable_under_a_bare_name(name: str) -> None:
    places_of = "lambda spec: [spec.origin, *(spec.submodule_search_locations or ())] if spec else []"
    code = f"import importlib.util as u; print(*({places_of})(u.find_spec({name!r})))"
    here = eval(places_of)(importlib.util.find_spec(name))
    for place in (*in_new_process(code).split(), *here):
        assert not Path(str(place)).is_relative_to(REPOSITORY / name), "run Python with PYTHONSAFEPATH=1"
        assert Path(str(place)) != REPOSITORY / f"{name}.py", "run Python with PYTHONSAFEPATH=1"


def test_a_reader_that_leaves_early_is_no_failure(tmp_path: Path) -> None:
    Store(tmp_path / "x.duckdb").prepare()
    reading, writing = os.pipe()
    os.close(reading)
    process = subprocess.run(
        [sys.executable, "-P", "-m", "morfi", "sql", "FROM range(99)", "--json", "--db", "x.duckdb"],
        cwd=tmp_path,
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (process.returncode, process.stderr) == (0, b"")


def test_ctrl_c_in_a_process_of_its_own_exits_with_130(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, morfi.cli\n"
        "sys.argv = ['morfi', 'runs']\n"
        "morfi.cli.Common.store = property(lambda _: os.kill(os.getpid(), signal.SIGINT))\n"
        "morfi.cli.main()"
    )
    process = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (process.returncode, process.stdout) == (130, "")
    assert process.stderr.strip() == "morfi: interrupted"
