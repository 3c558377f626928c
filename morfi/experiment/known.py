"""Stages that are known to be done without making them ready: no model, question or SAE is read.

What was given to a stage leads to a fingerprint, and the store says whether a run of it is whole. The way to
the fingerprint reads models and questions, so the cache keeps where it led, with the stamps of all that was
read. This says nothing of what was done: that the store alone does.
"""

from __future__ import annotations

import functools
import json
import os
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import morfi
from morfi.cache import Cache
from morfi.device import cpu_has_bfloat16
from morfi.experiment.stages import Stage
from morfi.files import canonical_sha256, stamps_of
from morfi.runs.provenance import versions

if TYPE_CHECKING:
    from morfi.store import Store

_CODE = (".py", ".sql")
_SERVERS = {"endpoint", "server"}  # options that name one, of split and of steer


@dataclass(frozen=True, slots=True)
class Led:
    """Where a stage's options lead, once that is known: `keep` notes it for the next time."""

    cache: Cache
    store: Store
    stage: Stage
    key: str
    sources: Sequence[str]
    stamps: Mapping[str, Sequence[int]]

    def keep(self, result: str) -> None:
        """Notes the fingerprint of the run `result`, or the entry of the SAE in that folder."""
        made = Path(result).name if self.stage.kind is None else self.store.run(result).fingerprint
        self.cache.note(Path.cwd(), self.key, {"made": made, "sources": self.sources, "stamps": self.stamps})


class Known:
    """What is known of stages by what the same options led to before, here and with the same code."""

    def __init__(self, store: Store) -> None:
        self._store, self._cache = store, Cache()

    def result(self, stage: Stage, given: Mapping[str, Any]) -> str | None:
        """The whole run of `stage` with the options `given`, or its SAE; None where it must be made ready.

        It must where it asks a server, which alone can say what it serves now.
        """
        if _SERVERS & given.keys():
            return None
        kept = self._cache.noted(Path.cwd(), self._key(stage, given))
        if not isinstance(kept, dict) or stamps_of(map(Path, kept["sources"])) != kept["stamps"]:
            return None
        if stage.kind is None:
            return str(self._cache.folder_of(kept["made"])) if self._cache.holds(kept["made"]) else None
        run = self._store.latest_run(kept["made"])
        if run is None or self._store.summary(run.run_id).status != "done":
            return None
        return run.run_id

    def led(self, stage: Stage, given: Mapping[str, Any], sources: Collection[Path]) -> Led:
        """What to keep of `stage` with the options `given`, which was made ready from these files now."""
        key, paths = self._key(stage, given), sorted(map(str, sources))
        return Led(self._cache, self._store, stage, key, paths, stamps_of(sources))

    def _key(self, stage: Stage, given: Mapping[str, Any]) -> str:
        options = json.dumps(given, sort_keys=True, default=str)
        return f"stage-{canonical_sha256([stage.name, options, self._here])}"

    @functools.cached_property
    def _here(self) -> list[Any]:
        """All else that may decide what a stage makes: morfi's code, the packages, and the machine."""
        devices = sorted(path.name for path in Path("/dev").glob("nvidia*"))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        return [_code(), versions(), socket.gethostname(), cpu_has_bfloat16(), devices, visible]


def _code() -> list[Any]:
    """The size and time of change of each file of morfi's own code."""
    found = []
    for folder, _, names in os.walk(Path(morfi.__file__).parent, followlinks=True):
        for path in (Path(folder) / name for name in names if name.endswith(_CODE)):
            stat = path.stat()
            found.append([str(path), stat.st_size, stat.st_mtime_ns])
    return sorted(found)
