"""Exports that are folders: a run as other evaluators write it, and all tables of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from morfi.errors import InputError
from morfi.files import whole_folder
from morfi.runs.as_eee import write_eee
from morfi.runs.as_lm_eval import write_lm_eval
from morfi.runs.as_tables import write_tables

if TYPE_CHECKING:
    from morfi.store import Store

# Each writes into a folder that is empty, and returns the run's id.
FOLDERS: Mapping[str, Callable[[Store, str, Path], str]] = MappingProxyType(
    {"eee": write_eee, "lm-eval": write_lm_eval, "tables": write_tables}
)


def export_folder(store: Store, run_id: str, fmt: str, out: Path | None) -> str:
    """Writes a run to the new folder `out`, whole or not at all; returns the run's id in full.

    `fmt` is one of `FOLDERS`. Raises InputError where something stands at `out` already, where no folder can
    be made there, and for a run that cannot be written in this form.
    """
    if out is None:
        raise InputError(f"{fmt} is a folder of files; give --out FOLDER")
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: the folder {out.absolute().parent} does not exist; make it first")
    if os.path.lexists(out):
        raise InputError(f"--out {out} is there already; {fmt} is written to a new folder: give another name")
    try:
        with whole_folder(out.absolute()) as part:
            return FOLDERS[fmt](store, run_id, part)
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written: {error.strerror or error}") from error
