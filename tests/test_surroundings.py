"""Whatever surrounds a command, it ends in one line and with the right exit code, and loses nothing it had.

All in processes of their own: signals, full and closed streams, mounts and locales are theirs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from morfi.store import Store

pytestmark = pytest.mark.long

TESTS = Path(__file__).resolve().parent / "evaluation"
MAIN = "from morfi.cli import main; main()"


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The last line of standard error, which holds no traceback."""
        assert "Traceback" not in self.err, self.err
        return self.err.replace("\r", "\n").strip().rpartition("\n")[2]


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONSAFEPATH": "1", "MORFI_CACHE": "/nonexistent/cache", **changes}


def morfi(*arguments: object, shell: str = "", env: Mapping[str, str] | None = None) -> Ended:
    """Runs a command; `shell` is what a shell puts after it, such as ">/dev/full"."""
    line = ["bash", "-c", f'"$@" {shell}', "bash", sys.executable, "-c", MAIN, *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, env=environment(**(env or {})), timeout=120, check=False)
    return Ended(done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("utf-8", "replace"))


def slow_eval(database: Path, pause_s: float, *more: object, **env: str) -> subprocess.Popen[str]:
    """`morfi eval` of 240 questions in batches of 20, each of which takes `pause_s`."""
    line = [sys.executable, TESTS / "eval_child.py", pause_s, "eval", "--ckpt", "x", "--batch", 20]
    return subprocess.Popen(
        [*map(str, line), "--db", str(database), *map(str, more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**env),
    )


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a slow evaluation and waits until its first batch is stored."""
    running: list[subprocess.Popen[str]] = []

    def start(pause_s: float = 0.3, **env: str) -> subprocess.Popen[str]:
        store = Store(tmp_path / "x.duckdb", lock_timeout_s=20)
        running.append(slow_eval(store.path, pause_s, **env))
        deadline = time.monotonic() + 60
        while not store.path.exists() or not any(run.n_done for run in store.runs(1)):
            assert time.monotonic() < deadline
            assert running[-1].poll() is None, running[-1].communicate()
            time.sleep(0.05)
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a finished evaluation; only to be read."""
    database = tmp_path_factory.mktemp("done") / "x.duckdb"
    with slow_eval(database, 0.0) as process:
        assert process.wait() == 0
    return database


@pytest.mark.parametrize(
    ("number", "code", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGHUP, 129, "SIGHUP")]
)
def test_a_signal_records_the_end_and_says_how_to_go_on(
    started: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: int, code: int, name: str
) -> None:
    process = started()
    process.send_signal(number)
    process.send_signal(number)  # as `timeout` does, which signals the group as well
    _, said = process.communicate(timeout=60)
    store = Store(tmp_path / "x.duckdb")
    (run,) = store.runs(5)
    assert (process.returncode, run.status) == (code, "interrupted")
    assert "Traceback" not in said
    assert f"stopped; go on with: morfi eval --resume {run.run_id} --db {store.path}" in said
    assert said.strip().endswith(f"morfi: ended by {name}")
    assert store.query("SELECT status, message FROM attempt_end").to_pylist() == [
        {"status": "interrupted", "message": name}
    ]
    assert store.query("FROM lease").num_rows == 0


def test_a_run_without_a_terminal_ignores_what_it_was_told_to_ignore(tmp_path: Path) -> None:
    code = "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    code += "import morfi.cli as c; c.Common.store = property(lambda _: os.kill(os.getpid(), 1) or exit(7)); "
    line = [sys.executable, "-c", f"{code}c.main()", "runs"]
    assert subprocess.run(line, env=environment(), timeout=60, check=False).returncode == 7


def test_a_second_process_is_told_who_works_on_the_run_and_starts_no_engine(
    started: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = started(pause_s=3.0)  # so that it works on while the second one comes, on a busy machine too
    with slow_eval(tmp_path / "x.duckdb", 0.0, "--resume", "auto") as second:
        _, said = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"is being worked on by PID {process.pid} on " in said.strip().rpartition("\n")[2]
    assert "starting vLLM" not in said
    process.kill()
    process.wait()
    with slow_eval(tmp_path / "x.duckdb", 0.0, "--resume", "auto") as third:
        third.communicate(timeout=60)
    assert third.returncode == 0
    (run,) = Store(tmp_path / "x.duckdb").runs(5)
    assert (run.status, run.n_done, run.n_attempts) == ("done", 240, 2)


def test_an_evaluation_outlasts_a_reader_and_a_standard_error_that_takes_nothing(
    started: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = started(pause_s=0.1)
    assert process.stderr is not None
    process.stderr.close()  # whoever read it has gone
    code = "import duckdb, sys, time; duckdb.connect(sys.argv[1], read_only=True); time.sleep(3)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "x.duckdb")]) as reader:
        reader.wait()
    assert process.stdout is not None
    assert "(done)" in process.stdout.read()
    assert process.wait() == 0
    (run,) = Store(tmp_path / "x.duckdb").runs(5)
    assert (run.n_done, run.n_attempts) == (240, 1)


READING = {
    "runs": ("runs",),
    "runs --json": ("runs", "--json"),
    "show": ("show", "last"),
    "compare": ("compare", "last", "last"),
    "sql": ("sql", "FROM samples"),
    "sql --json": ("sql", "--json", "FROM samples"),
    "export": ("export", "last"),
    "export csv": ("export", "last", "--format", "csv"),
    "cache ls": ("cache", "ls"),
    "help": ("--help",),
}


@pytest.mark.parametrize("name", READING)
def test_output_that_cannot_be_written_is_one_line_and_a_reader_may_leave(done: Path, name: str) -> None:
    command = (*READING[name], *(() if name == "help" else ("--db", done)))
    full = morfi(*command, shell=">/dev/full")
    assert full.code == 1
    assert full.line.startswith("morfi: ")
    assert "No space left on device" in full.line
    gone = morfi(*command, shell="| head -c 1 >/dev/null; exit ${PIPESTATUS[0]}")
    assert (gone.code, gone.err) in ((0, ""), (1, "") if name == "help" else (0, ""))
    closed = morfi(*command, shell=">&-")
    if name == "help":
        assert closed.code == 0
    else:
        assert (closed.code, closed.line) == (1, "morfi: standard output is closed")


@pytest.mark.parametrize("where", ["", ">&-"])
def test_a_failure_of_the_system_is_one_line_whatever_becomes_of_the_output(where: str) -> None:
    code = (
        "from morfi import cli\n"
        "def fail(**_): raise OSError(5, 'Input/output error', 'some/file')\n"
        "cli.cli.main = fail\n"
        "cli.main()"
    )
    shell = ["bash", "-c", f'"$@" {where}', "bash", sys.executable, "-c", code]
    ended = subprocess.run(shell, capture_output=True, text=True, env=environment(), timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (1, "morfi: some/file: Input/output error\n")


SLOW = pytest.mark.slow  # much the same as those before them
STREAMS = (
    ">/dev/full",
    "<&- >&- 2>&-",
    *(pytest.param(where, marks=SLOW) for where in (">&-", "2>/dev/full", "2>&-")),
)


@pytest.mark.parametrize("where", STREAMS)
def test_an_evaluation_that_ended_well_is_not_failed_by_its_streams(tmp_path: Path, where: str) -> None:
    line = [sys.executable, TESTS / "eval_child.py", 0, "eval", "--ckpt", "x", "--db", tmp_path / "x.duckdb"]
    shell = ["bash", "-c", f'"$@" {where}', "bash", *map(str, line)]
    ended = subprocess.run(shell, capture_output=True, text=True, env=environment(), timeout=60, check=False)
    (run,) = Store(tmp_path / "x.duckdb").runs(1)
    assert (ended.returncode, run.status, run.n_done) == (0, "done", 240), ended.stderr
    if where[0] == ">":
        kept = f"the run is stored: morfi show {run.run_id} --db {tmp_path / 'x.duckdb'}"
        assert ended.stderr.strip().endswith(kept)


@pytest.mark.parametrize(
    "encoding", ["latin-1", *(pytest.param(one, marks=SLOW) for one in ("ascii", "utf-8"))]
)
def test_any_locale_prints_any_text(done: Path, tmp_path: Path, encoding: str) -> None:
    database = shutil.copyfile(done, tmp_path / "Ł.duckdb")
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); "
    code += "c.execute(\"UPDATE completion SET answer = 'Łódź 🗼 é'\")"
    subprocess.run([sys.executable, "-c", code, database], check=True, timeout=60)
    env = {"PYTHONIOENCODING": encoding}
    for command in ("sql FROM(samples)", "show last", "compare last last", "runs", "export last"):
        ended = morfi(*command.split(), "--db", database, env=env)
        assert (ended.code, ended.err) == (0, ""), ended
    for words in (("sql", "--json", "SELECT answer FROM samples"), ("show", "last", "--json")):
        ended = morfi(*words, "--db", database, env=env)
        found: Any = json.loads(
            ended.out.encode("latin-1").decode("utf-8" if encoding == "utf-8" else "ascii")
        )
        assert "rows" not in found or found["rows"][0] == {"answer": "Łódź 🗼 é"}


def test_a_statement_may_begin_with_a_comment(done: Path) -> None:
    for statement in ("-- how many\nSELECT count(*) AS n FROM run", "--of=x\nSELECT count(*) AS n FROM run"):
        for command in (
            ["sql", statement, "--json", "--db", done],
            ["sql", "--json", "--db", done, statement],
        ):
            ended = morfi(*command)
            assert ended.code == 0, ended
            assert json.loads(ended.out)["rows"] == [{"n": 1}]
    assert "No such option" in morfi("sql", "--jsn", "SELECT 1", "--db", done).err


@pytest.fixture
def read_only(tmp_path: Path, done: Path) -> Iterator[Path]:
    """A folder on a read-only mount that holds the finished database."""
    folder = tmp_path / "ro"
    folder.mkdir()
    shutil.copyfile(done, folder / "x.duckdb")
    mount = ["mount", "--bind", str(folder), str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_mount_is_read_and_refused_in_one_line(read_only: Path, tmp_path: Path) -> None:
    there = read_only / "x.duckdb"
    for command in (("runs",), ("show", "last"), ("sql", "FROM runs"), ("export", "last"), ("cache", "ls")):
        ended = morfi(*command, "--db", there)
        assert (ended.code, ended.err) == (0, ""), ended
    ended = morfi("export", "last", "--out", read_only / "rows.jsonl", "--db", there)
    assert ended.code == 2
    assert "Read-only file system" in ended.line or "read-only" in ended.line
    for database in (there, read_only / "new.duckdb"):
        with slow_eval(database, 0.0) as process:
            _, said = process.communicate(timeout=60)
        assert process.returncode == 2
        last = said.strip().rpartition("\n")[2]
        assert (
            last == f"morfi: {database}: cannot be written: permission denied or read-only; give another --db"
        )
    long = tmp_path / f"{'n' * 238}.duckdb"
    with slow_eval(long, 0.0) as process:
        process.communicate(timeout=60)
    assert process.returncode == 0


def test_without_a_home_the_cache_says_what_to_set() -> None:
    env = {key: value for key, value in environment().items() if key not in ("HOME", "MORFI_CACHE")}
    env.pop("XDG_CACHE_HOME", None)
    code = "import os, pwd; pwd.getpwuid = {}.__getitem__; " + MAIN  # a user whom the system does not know
    line = [sys.executable, "-c", code, "cache", "ls"]
    ended = subprocess.run(line, capture_output=True, text=True, env=env, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr.strip() == (
        "morfi: there is no home folder for the cache; set MORFI_CACHE to a folder that can be written"
    )
