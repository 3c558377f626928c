from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from morfi.cache import Cache, Manifest
from morfi.errors import InputError, MorfiError

MANIFEST = Manifest("merged", "a on b", {"base_sha256": "00"})


def writes(text: str) -> Callable[[Path], None]:
    def build(directory: Path) -> None:
        (directory / "file").write_text(text)

    return build


def unused(directory: Path) -> None:
    raise AssertionError("built again")


def files_under(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and "locks" not in path.parts]


def test_the_second_request_for_a_key_reuses_what_the_first_built(tmp_path: Path) -> None:
    path = Cache(tmp_path).get_or_create("k1", writes("x"), MANIFEST)
    assert Cache(tmp_path).get_or_create("k1", unused, MANIFEST) == path
    assert (path / "file").read_text() == "x"


def test_an_entry_says_what_it_is_and_how_large(tmp_path: Path) -> None:
    Cache(tmp_path).get_or_create("k1", writes("four"), MANIFEST)
    (entry,) = Cache(tmp_path).entries()
    assert (entry.key, entry.kind, entry.name, entry.bytes) == ("k1", "merged", "a on b", 4)
    assert entry.sources == {"base_sha256": "00"}
    assert entry.created.endswith("+00:00")


def test_a_build_that_fails_leaves_nothing_and_its_error_passes(tmp_path: Path) -> None:
    def fails(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise InputError("bad tensor")

    with pytest.raises(InputError, match="bad tensor"):
        Cache(tmp_path).get_or_create("k1", fails, MANIFEST)
    assert files_under(tmp_path) == []
    assert Cache(tmp_path).entries() == []


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path).get_or_create("k1", interrupted, MANIFEST)
    assert files_under(tmp_path) == []


def test_a_full_disk_is_one_line_that_names_the_way_out(tmp_path: Path) -> None:
    def full(directory: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory / "model.safetensors"))

    with pytest.raises(MorfiError, match=r"No space left on device.*MORFI_CACHE") as caught:
        Cache(tmp_path).get_or_create("k1", full, MANIFEST)
    assert caught.value.exit_code == 1
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files_under(tmp_path) == []


def test_a_root_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="MORFI_CACHE"):
        Cache(tmp_path / "file" / "cache").get_or_create("k1", writes("x"), MANIFEST)


def test_an_existing_entry_is_served_from_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Cache(tmp_path).get_or_create("k1", writes("x"), MANIFEST)

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert Cache(tmp_path).get_or_create("k1", unused, MANIFEST) == path
    with pytest.raises(InputError, match="Read-only file system"):
        Cache(tmp_path).get_or_create("k2", writes("x"), MANIFEST)


@pytest.mark.parametrize("damage", ["truncate", "delete", "manifest"])
def test_a_damaged_entry_is_built_again(tmp_path: Path, damage: str) -> None:
    path = Cache(tmp_path).get_or_create("k1", writes("whole"), MANIFEST)
    if damage == "truncate":
        (path / "file").write_text("who")
    elif damage == "delete":
        (path / "file").unlink()
    else:
        (path / "entry.json").write_text("{")
    assert Cache(tmp_path).entries() == []
    assert Cache(tmp_path).get_or_create("k1", writes("again"), MANIFEST) == path
    assert (path / "file").read_text() == "again"
    assert len(Cache(tmp_path).entries()) == 1


def test_two_builders_of_one_key_both_succeed_and_build_once(tmp_path: Path) -> None:
    started = threading.Event()
    said: list[str] = []
    built: list[Path] = []
    results: list[Path] = []

    def slow(directory: Path) -> None:
        built.append(directory)
        started.set()
        while not said:
            threading.Event().wait(0.01)
        (directory / "file").write_text("x")

    def first() -> None:
        results.append(Cache(tmp_path).get_or_create("k1", slow, MANIFEST))

    thread = threading.Thread(target=first)
    thread.start()
    assert started.wait(10)
    results.append(Cache(tmp_path).get_or_create("k1", slow, MANIFEST, said.append))
    thread.join(10)
    assert len(built) == 1
    assert results == [tmp_path / "checkpoints" / "k1"] * 2
    assert "waiting" in said[0]


def test_two_processes_racing_for_a_key_both_succeed(tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom morfi.cache import Cache, Manifest\n"
        "def build(d):\n    time.sleep(0.3)\n    (d / 'file').write_text('x')\n"
        "print(Cache(Path(sys.argv[1])).get_or_create('k1', build, Manifest('merged', 'n', {})))\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path)]
    racers = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {racer.communicate(timeout=60)[0].strip() for racer in racers} == {
        str(tmp_path / "checkpoints" / "k1")
    }
    assert [racer.returncode for racer in racers] == [0, 0]
    assert len(Cache(tmp_path).entries()) == 1


def test_what_a_killed_process_left_is_swept_by_the_next_build(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom morfi.cache import Cache, Manifest\n"
        "def build(d):\n    (d / 'half').write_text('x')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "Cache(Path(sys.argv[1])).get_or_create('k1', build, Manifest('merged', 'n', {}))\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False, timeout=60)
    assert killed.returncode < 0
    assert [path.name for path in files_under(tmp_path)] == ["half"]
    assert Cache(tmp_path).entries() == []
    Cache(tmp_path).get_or_create("k2", writes("x"), MANIFEST)
    assert sorted(path.name for path in files_under(tmp_path)) == ["entry.json", "file"]


def test_a_sweep_spares_a_build_under_way(tmp_path: Path) -> None:
    def build(directory: Path) -> None:
        assert Cache(tmp_path).sweep() == 0
        (directory / "file").write_text("x")

    path = Cache(tmp_path).get_or_create("k1", build, MANIFEST)
    assert (path / "file").is_file()


def test_remove_takes_a_unique_start_of_a_key(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for key in ("abc1", "abd2"):
        cache.get_or_create(key, writes("x"), MANIFEST)
    assert cache.remove("abc").key == "abc1"
    assert [entry.key for entry in cache.entries()] == ["abd2"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["abd2"]


@pytest.mark.parametrize(
    ("prefix", "said"), [("ab", "fits 2"), ("x", "no entry"), ("", "no entry"), ("../", "no")]
)
def test_remove_refuses_what_is_not_one_entry(tmp_path: Path, prefix: str, said: str) -> None:
    cache = Cache(tmp_path)
    for key in ("abc1", "abd2"):
        cache.get_or_create(key, writes("x"), MANIFEST)
    with pytest.raises(InputError, match=said):
        cache.remove(prefix)
    assert len(cache.entries()) == 2


def test_an_empty_cache_has_no_entries_and_is_not_created(tmp_path: Path) -> None:
    assert Cache(tmp_path / "none").entries() == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("morfi_cache", "xdg", "expected"),
    [
        ("/m", "/x", "/m"),
        (None, "/x", "/x/morfi"),
        (None, None, "/home/u/.cache/morfi"),
        ("", "", "/home/u/.cache/morfi"),
    ],
)
def test_the_root_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, morfi_cache: str | None, xdg: str | None, expected: str
) -> None:
    monkeypatch.setenv("HOME", "/home/u")
    for name, value in (("MORFI_CACHE", morfi_cache), ("XDG_CACHE_HOME", xdg)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert Cache().root == Path(expected)


def test_a_file_is_hashed_again_only_when_it_changed(tmp_path: Path) -> None:
    file, cache, calls = tmp_path / "f", Cache(tmp_path / "cache"), []

    def compute() -> str:
        calls.append(1)
        return file.read_text()

    file.write_text("one")
    assert [cache.remember(file, "bytes", compute) for _ in range(3)] == ["one"] * 3
    assert len(calls) == 1
    before = file.stat()
    file.write_text("two")
    # Of the same size and with the old time put back, as a careful copy would.
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cache.remember(file, "bytes", compute) == "two"
    assert cache.remember(file, "other", lambda: "else") == "else"


def test_a_damaged_memo_is_ignored(tmp_path: Path) -> None:
    file, cache = tmp_path / "f", Cache(tmp_path)
    file.write_text("x")
    for content in ("", "[]", "{", json.dumps({f"bytes:{file}": 3})):
        (tmp_path / "hashes.json").write_text(content)
        assert cache.remember(file, "bytes", lambda: "right") == "right"


def test_a_memo_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_text("x")
    assert Cache(file / "below").remember(file, "bytes", lambda: "right") == "right"
