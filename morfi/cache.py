"""The cache of prepared checkpoints: content-addressed directories that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from morfi.errors import InputError, MorfiError
from morfi.files import stamp_of, unwritten, whole_file
from morfi.terminal import Say

_MANIFEST = "entry.json"
_BUILDING = ".building-"


@dataclass(frozen=True, slots=True)
class Manifest:
    """An entry's manifest: `kind` ("embedded", "merged", "text"), a name, and what it was made from."""

    kind: str
    name: str
    sources: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Entry:
    """One finished directory of the cache; `created` is ISO 8601 in UTC, `bytes` the size of its files."""

    key: str
    path: Path
    kind: str
    name: str
    created: str
    sources: Mapping[str, str]
    bytes: int


class Cache:
    """Prepared checkpoints under `root`/checkpoints, and what is known of files by their hash.

    `root` defaults to $MORFI_CACHE, else $XDG_CACHE_HOME/morfi, else ~/.cache/morfi. Nothing is created
    before the first write, so a cache that may only be read still serves what it holds.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or _default_root()).absolute()
        self._checkpoints = self.root / "checkpoints"

    def entries(self) -> list[Entry]:
        """The finished entries, oldest first."""
        if not self._checkpoints.is_dir():
            return []
        found = [_read_entry(path) for path in self._checkpoints.iterdir() if not path.name.startswith(".")]
        return sorted((entry for entry in found if entry is not None), key=lambda e: (e.created, e.key))

    def folder_of(self, key: str) -> Path:
        """The directory of entry `key`, there or not."""
        return self._checkpoints / key

    def holds(self, key: str) -> bool:
        """Whether entry `key` is there, whole."""
        return _read_entry(self.folder_of(key)) is not None

    def get_or_create(
        self,
        key: str,
        build: Callable[[Path], None],
        manifest: Manifest,
        say: Say | None = None,
    ) -> Path:
        """The directory of entry `key`, made by `build(directory)` when it is absent or damaged.

        `build` fills a hidden directory that takes its final name only when it is complete; of two
        processes that want one key, the second waits for the first. Raises InputError where the cache
        cannot be written.
        """
        path = self.folder_of(key)
        if _read_entry(path) is not None:
            return path
        try:
            self._checkpoints.mkdir(parents=True, exist_ok=True)
            self.sweep()
            with self._lock(key, say):
                if _read_entry(path) is None:
                    self._build(path, build, manifest)
        except OSError as error:
            raise _unwritable(self.root, error) from error
        return path

    def remove(self, prefix: str) -> Entry:
        """Deletes the one entry whose key starts with `prefix`, and returns what it was."""
        matching = [entry for entry in self.entries() if prefix and entry.key.startswith(prefix)]
        if len(matching) != 1:
            state = f"fits {len(matching)} entries" if matching else "fits no entry"
            raise InputError(
                f'cache key "{prefix}" {state} of {self.root}; '
                "give the start of one key that `morfi cache ls` shows"
            )
        entry = matching[0]
        try:
            with self._lock(entry.key):
                doomed = Path(tempfile.mkdtemp(prefix=_building(entry.key), dir=self._checkpoints))
                # Renamed first: an entry must vanish whole, even if this process dies during the deletion.
                entry.path.rename(doomed / "entry")
                shutil.rmtree(doomed)
        except OSError as error:
            raise _unwritable(self.root, error) from error
        return entry

    def sweep(self) -> int:
        """Deletes what dead processes left unfinished and returns how many directories those were."""
        swept = 0
        for path in self._checkpoints.glob(f"{_BUILDING}*"):
            with self._lock(path.name.removeprefix(_BUILDING).partition(".")[0], wait=False) as locked:
                if locked:
                    shutil.rmtree(path, ignore_errors=True)
                    swept += 1
        return swept

    def remember(self, path: Path, kind: str, compute: Callable[[], Any]) -> Any:
        """`compute()` for the file at `path`, or its earlier result (JSON) if the file is still the same.

        The same means: path, size, inode and both times of change are what they were.
        """
        stamp, known = stamp_of(path), self.noted(path, kind)
        if isinstance(known, dict) and known.get("stamp") == stamp and "value" in known:
            return known["value"]
        value = compute()
        if stamp_of(path) == stamp:
            self.note(path, kind, {"stamp": stamp, "value": value})
        return value

    def noted(self, path: Path, kind: str) -> Any:
        """What was noted of `path` under `kind`; None where nothing was."""
        return self._read_memo().get(f"{kind}:{path.resolve()}")

    def note(self, path: Path, kind: str, value: Any) -> None:
        """Notes `value` (JSON) of `path` under `kind`, for as long as there is something at `path`.

        Without a place to write, nothing is noted: results are the same, and the next run is only slower.
        """
        with contextlib.suppress(OSError):
            self._write_memo(f"{kind}:{path.resolve()}", value)

    def _build(self, path: Path, build: Callable[[Path], None], manifest: Manifest) -> None:
        work = Path(tempfile.mkdtemp(prefix=_building(path.name), dir=self._checkpoints))
        try:
            entry = work / "entry"
            entry.mkdir()
            build(entry)
            _write_manifest(entry, manifest)
            if path.exists():
                path.rename(work / "damaged")
            try:
                entry.rename(path)
            except OSError as error:
                # Only where the file system has no locks can another process have been first.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or _read_entry(path) is None:
                    raise
        finally:
            shutil.rmtree(work, ignore_errors=True)

    @contextlib.contextmanager
    def _lock(self, name: str, say: Say | None = None, *, wait: bool = True) -> Iterator[bool]:
        """Holds the lock `name`; yields whether it is held (not so where the file system has no locks)."""
        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("a") as file:
            yield _acquire(file.fileno(), wait, say)

    def _read_memo(self) -> dict[str, Any]:
        try:
            memo = json.loads((self.root / "hashes.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return memo if isinstance(memo, dict) else {}

    def _write_memo(self, key: str, record: Any) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        with self._lock("hashes"):
            memo = {k: v for k, v in self._read_memo().items() if Path(k.partition(":")[2]).exists()}
            with whole_file(self.root / "hashes.json") as file:
                file.write(json.dumps({**memo, key: record}).encode())


def _acquire(descriptor: int, wait: bool, say: Say | None) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            return False
        if say is not None:
            say("waiting for another morfi that prepares the same checkpoint")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


def _default_root() -> Path:
    if given := os.environ.get("MORFI_CACHE"):
        return Path(given).expanduser()
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given).expanduser() / "morfi"
    try:
        return Path.home() / ".cache" / "morfi"
    except RuntimeError as error:  # no HOME, and a user whom the system does not know
        raise InputError(
            "there is no home folder for the cache; set MORFI_CACHE to a folder that can be written"
        ) from error


def _building(key: str) -> str:
    return f"{_BUILDING}{key}."


def _write_manifest(entry: Path, manifest: Manifest) -> None:
    files = {str(f.relative_to(entry)): f.stat().st_size for f in sorted(entry.rglob("*")) if f.is_file()}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({**asdict(manifest), "created": created, "files": files}, indent=1, sort_keys=True)
    (entry / _MANIFEST).write_text(text, encoding="utf-8")


def _read_entry(path: Path) -> Entry | None:
    """The entry at `path`, or None where it is absent or a file of it is missing or of another size."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, int] = manifest["files"]
        if any((path / name).stat().st_size != size for name, size in files.items()):
            return None
        return Entry(
            key=path.name,
            path=path,
            kind=manifest["kind"],
            name=manifest["name"],
            created=manifest["created"],
            sources=manifest["sources"],
            bytes=sum(files.values()),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _unwritable(root: Path, error: OSError) -> MorfiError:
    reason = error.strerror or str(error)
    where = f" at {error.filename}" if error.filename else ""
    return unwritten(
        f"the cache {root} cannot be written: {reason}{where}; make room or make it writable, "
        "or set MORFI_CACHE to another folder",
        error,
    )
