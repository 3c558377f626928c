"""The directions of a steer run as files that other steering servers load, and `morfi serve --vectors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.errors import InputError
from morfi.files import whole_file
from morfi.interventions.config import SteerRun
from morfi.interventions.directions import Target, find_targets
from morfi.interventions.outcome import Outcome, steered
from morfi.interventions.rivals import known_questions
from morfi.latents.find import load_found
from morfi.runs.settings import settings_of
from morfi.store.records import RunKind, RunRecord

if TYPE_CHECKING:
    from morfi.store import Store


def export_vectors(store: Store, run_id: str, out: Path) -> tuple[str, tuple[Path, Path]]:
    """Writes the directions of a steer run to `out`, a safetensors file, and the facts about them beside it.

    Each is a tensor of length 1, float32 [d_model], by a name without blanks, such as latent-3003; the JSON
    file of the same name says for each its layer, its best strength, also in raw units, and its gain, and
    where it comes from. Latents that were steered together are left out: they are sums of these. Returns the
    run's id and the two paths. Raises InputError for a run that is none of `morfi steer` or has not ended,
    where its SAE or its captures are not as they were, and where there is no place to write to.
    """
    run = store.run_of_kind(run_id, RunKind.STEER)
    found = steered(store, run)
    if found is None:
        raise InputError(f"{run.run_id} has not ended; give its command again to finish it")
    settings = settings_of(run, SteerRun)
    is_known = known_questions(store, settings.split_run)
    targets, _ = find_targets(load_found(store, settings.latents), settings, settings.median_norm, is_known)
    outcomes = {one.direction.direction: one for one in found.outcomes}
    facts = {_name(one): _facts(one, outcomes[one.row.direction]) for one in targets}
    about = {"made_by": _provenance(run, settings), "vectors": facts}
    described = out.with_suffix(".json")
    if described == out:
        raise InputError(
            f"--out {out} is named like the JSON file that stands beside it; give FILE.safetensors"
        )
    if described.is_dir() or (described.exists() and not out.exists()):
        raise InputError(f"--out {out}: {described} is there, and would be replaced; give another name")
    _write(out, _tensors(targets))
    _write(described, (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))
    return run.run_id, (out, described)


def _tensors(targets: list[Target]) -> bytes:
    from safetensors.torch import save

    content: bytes = save({_name(one): one.vector.contiguous() for one in targets})
    return content


def _name(target: Target) -> str:
    return target.row.direction.replace(" ", "-")


def _facts(target: Target, outcome: Outcome) -> dict[str, Any]:
    row, reported = target.row, outcome.reported
    return {
        "kind": row.kind,
        "latent": row.latent,
        "layer": row.layer,
        "operation": row.operation,
        "alpha": outcome.best.alpha,
        "strength": outcome.best.strength,
        "gain": None if reported is None else reported.difference,
        "interval": None if reported is None else [reported.interval.low, reported.interval.high],
    }


def _provenance(run: RunRecord, settings: SteerRun) -> dict[str, Any]:
    """What a reader must know to use the vectors elsewhere."""
    return {
        "run": run.run_id,
        "fingerprint": run.fingerprint,
        "base": run.base,
        "base_sha256": run.base_sha256,
        "checkpoint_sha256": run.ckpt_sha256,
        "find_run": settings.latents,
        "residual_stream": "after the decoder layer, counted from 0",
        "unit_of_alpha": "median norm of the residual stream",
        "median_norm": settings.median_norm,
        "positions": settings.positions,
        "chosen_on": settings.choose_on,
        "reported_on": settings.report_on,
    }


def _write(path: Path, content: bytes) -> None:
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise InputError(f"--out {path}: cannot be written: {error.strerror or error}") from error
