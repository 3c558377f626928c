from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import socket
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from morfi import __version__
from morfi.runs import provenance
from morfi.runs.provenance import attempt_record, new_run_id, now, versions
from morfi.store.records import RunKind


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that provenance takes for the one of morfi's source tree."""
    package = tmp_path / "tree" / "morfi"
    package.mkdir(parents=True)
    (package / "provenance.py").write_text("")
    monkeypatch.setattr(provenance, "__file__", str(package / "provenance.py"))
    return package.parent


def git(tree: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(tree), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def commit_of() -> str | None:
    return attempt_record("morfi", {}, "cpu").git_commit


def test_a_run_id_says_its_kind_and_time_and_sorts_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = datetime(2026, 1, 31, 17, 45, 1, tzinfo=UTC)
    ids = []
    for later_s in (0, 1, 3600, 10**8):
        monkeypatch.setattr(provenance, "now", lambda s=later_s: moment + timedelta(seconds=s))
        ids.append(new_run_id(RunKind.EVAL))
    assert re.fullmatch(r"eval-20260131-174501-[0-9a-f]{4}", ids[0])
    assert ids == sorted(ids)


def test_ids_of_one_second_differ() -> None:
    assert len({new_run_id(RunKind.EVAL) for _ in range(20)}) > 15


def test_the_time_is_in_utc() -> None:
    assert now().tzinfo is UTC


def test_versions_are_those_of_the_installed_packages_and_of_python() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == importlib.metadata.version("torch")
    assert {"duckdb", "numpy", "safetensors", "transformers"} <= set(found)


def test_a_package_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_PACKAGES", ("no-such-package-anywhere", "duckdb"))
    assert set(versions()) == {"python", "duckdb"}


def test_an_attempt_names_its_process() -> None:
    record = attempt_record("morfi eval", {"block_size": 32}, "cpu")
    assert (record.pid, record.host) == (os.getpid(), socket.gethostname())
    assert (record.command, record.device, record.engine) == ("morfi eval", "cpu", {"block_size": 32})
    assert record.morfi_version == __version__


def test_the_commit_is_a_full_hash_even_after_a_tag_and_marked_where_the_tree_is_changed(
    source: Path,
) -> None:
    git(source, "init", "-q")
    git(source, "add", ".")
    git(source, "commit", "-q", "-m", "one")
    git(source, "tag", "-a", "v1.0", "-m", "first")
    head = git(source, "rev-parse", "HEAD")
    assert commit_of() == head
    (source / "morfi" / "provenance.py").write_text("changed")
    assert commit_of() == f"{head}-dirty"


def test_an_installed_package_has_no_commit_even_inside_someone_elses_repository(source: Path) -> None:
    git(source.parent, "init", "-q")
    git(source.parent, "commit", "-q", "--allow-empty", "-m", "one")
    assert commit_of() is None


def test_a_repository_without_a_commit_or_a_machine_without_git_has_none(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(source, "init", "-q")
    assert commit_of() is None
    monkeypatch.setenv("PATH", "")
    assert commit_of() is None
