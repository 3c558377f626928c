"""`morfi serve`: a checkpoint behind an HTTP server, steerable along the latents of a find run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.checkpoints import Checkpoint, resolve, resolve_unmerged
from morfi.checkpoints.presets import PRESETS
from morfi.conditions.condition import BASE
from morfi.errors import InputError
from morfi.questions.prompts import context_for
from morfi.runs.options import option, run_of
from morfi.serve.http.catalog import Catalog, load_catalog
from morfi.terminal import Progress

if TYPE_CHECKING:
    from morfi.store import Store


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Settings of a server: `ckpt` is a model, or a checkpoint of the train run behind `latents`."""

    ckpt: str = option("M_LEVEL or an id of the train run, a folder, or a preset.")
    latents: str = run_of("find")
    dtype: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything a server starts from: `checkpoint` under the id `served`, and `model` as clients call it."""

    catalog: Catalog
    checkpoint: Checkpoint
    served: str
    model: str
    context: int
    overrides: Mapping[str, Any]

    @property
    def start(self) -> Checkpoint:
        """What the engine starts on, before it loads `checkpoint`: the base of the series, if it is of it."""
        base = self.catalog.series.base
        return base if self.checkpoint.base_sha256 == base.sha256 else self.checkpoint


def prepare_server(config: ServeConfig, store: Store, progress: Progress) -> Launch:
    """The launch of `config`; raises InputError where its checkpoint, or what that rests on, is not there."""
    catalog = load_catalog(store, config.latents, config.dtype, progress)
    served, checkpoint = chosen(config.ckpt, catalog, config.dtype, progress)
    context = context_for(checkpoint, config.engine)
    progress.phase(f"starting vLLM on {checkpoint.name}")
    return Launch(catalog, checkpoint, served, catalog.series.base.name, context, config.engine)


def chosen(ckpt: str, catalog: Catalog, dtype: str | None, progress: Progress) -> tuple[str, Checkpoint]:
    """The checkpoint that --ckpt names, with its id: one of the train run, an adapter folder, or a model."""
    known = catalog.id_of(ckpt)
    if known is not None:
        return known, catalog.open(known)
    if ckpt not in PRESETS and not Path(ckpt).expanduser().is_dir():
        raise InputError(
            f'no checkpoint "{ckpt}": expected M_LEVEL or an id of {catalog.series.source} '
            f"({', '.join(catalog.checkpoints)}), a folder, or a preset"
        )
    base = catalog.series.base
    if (Path(ckpt).expanduser() / "adapter_config.json").is_file():
        checkpoint = resolve_unmerged(ckpt, base=base)
        return _member(catalog, checkpoint.adapter_sha256) or (checkpoint.name, checkpoint)
    checkpoint = resolve(ckpt, dtype=dtype, say=progress.phase)
    if (own := _member(catalog, checkpoint.sha256)) is not None:
        return own
    return (BASE.id, base) if checkpoint.sha256 == base.sha256 else (checkpoint.name, checkpoint)


def _member(catalog: Catalog, sha256: str | None) -> tuple[str, Checkpoint] | None:
    """The checkpoint of the series whose files have this sha256, with its id; None where there is none."""
    own = (one for one, member in catalog.series.members.items() if member.sha256 == sha256)
    condition = next(own, None)
    return None if condition is None else (condition.id, catalog.series.open(condition))
