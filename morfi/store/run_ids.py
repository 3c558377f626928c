"""The ids of runs, as people shorten them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from morfi.errors import InputError, nearest
from morfi.store.records import STARTED


def resolve(path: Path, run_id: str, kinds: Mapping[str, str], kind: str | None = None) -> str:
    """The run that `run_id` names in full, by its beginning or as "last", among `kinds` by id, newest first.

    With `kind`, "last" is the newest run of that kind, else the newest that a person started.
    """
    known = list(kinds)
    if not known:
        raise InputError(f"{path}: holds no runs yet; `morfi eval` makes one")
    if run_id == "last":
        wanted = STARTED if kind is None else (kind,)
        own = [one for one in known if kinds[one] in wanted]
        if not own:
            raise InputError(f"{path}: holds no run of `morfi {kind}` yet; the newest is {known[0]}")
        return own[0]
    if run_id in known:
        return run_id
    matches = [full_id for full_id in known if run_id and full_id.startswith(run_id)]
    if len(matches) == 1:
        return matches[0]
    newest = ", ".join((matches or known)[:3])
    if matches:
        raise InputError(
            f'run "{run_id}" could be any of {len(matches)} runs ({newest}); give more of the id'
        )
    raise InputError(f'no run "{run_id}" in {path}.{nearest(run_id, known)} The newest: {newest}')
