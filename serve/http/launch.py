"""`morfi serve`: a checkpoint behind an HTTP server, steerable along latents of SAEs and named vectors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.checkpoints import Checkpoint, resolve, resolve_unmerged
from morfi.checkpoints.presets import PRESETS
from morfi.conditions.condition import BASE
from morfi.conditions.series import Series
from morfi.engine.directions import Direction
from morfi.engine.residual_stream import ResidualStream, stream_of
from morfi.errors import InputError
from morfi.latents.sae import load_sae
from morfi.questions.prompts import context_for
from morfi.runs.options import option
from morfi.serve.http.catalog import Catalog, load_catalog
from morfi.serve.http.steerable import ServedSae, name_of
from morfi.serve.http.vectors import read_vectors
from morfi.terminal import Progress

if TYPE_CHECKING:
    from morfi.store import Store


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Settings of a server: `ckpt` is a model, or a checkpoint of the series behind `latents`."""

    ckpt: str = option("A folder or a preset; with --latents also M_LEVEL or an id of their train run.")
    latents: tuple[str, ...] = option(
        "A run of `morfi find`; repeatable.", (), unset="none", metavar="RUN", repeatable=True
    )
    sae: tuple[str, ...] = option(
        "An SAE: RELEASE:ID, a folder or a preset; repeatable.",
        (),
        unset="that of --latents",
        metavar="SAE",
        repeatable=True,
    )
    vectors: str | None = option(
        "Named vectors [d_model], in safetensors.", None, unset="none", metavar="FILE"
    )
    dtype: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything a server starts from: `checkpoint` under the id `served`, and `model` as clients call it."""

    catalogs: tuple[Catalog, ...]
    saes: tuple[ServedSae, ...]
    vectors: Mapping[str, Direction]
    checkpoint: Checkpoint
    served: str
    model: str
    context: int
    overrides: Mapping[str, Any]

    @property
    def series(self) -> Series | None:
        """The series behind the find runs, if there are any."""
        return self.catalogs[0].series if self.catalogs else None

    @property
    def bos(self) -> str:
        """The --bos with which the series' checkpoints are asked."""
        return "auto" if self.series is None else self.series.bos

    @property
    def start(self) -> Checkpoint:
        """What the engine starts on, before it loads `checkpoint`: the base of the series, if it is of it."""
        if self.series is None or self.checkpoint.base_sha256 != self.series.base.sha256:
            return self.checkpoint
        return self.series.base


def prepare_server(config: ServeConfig, store: Store, progress: Progress) -> Launch:
    """The launch of `config`; raises InputError where its checkpoint, or what that rests on, is not there."""
    vectors = {} if config.vectors is None else read_vectors(Path(config.vectors))
    catalogs = _of_one_series([load_catalog(store, run, config.dtype, progress) for run in config.latents])
    if catalogs:
        model = catalogs[0].series.base.name
        served, checkpoint = chosen(config.ckpt, catalogs[0], config.dtype, progress)
    else:
        if re.fullmatch(r"M_\d+", config.ckpt) and not Path(config.ckpt).is_dir():
            raise InputError(
                f"--ckpt {config.ckpt} is a level of a train run; give --latents RUN, a run of `morfi find`, "
                "as well, or a folder"
            )
        checkpoint = resolve(config.ckpt, dtype=config.dtype, say=progress.phase)
        model = served = checkpoint.name
    stream = stream_of(checkpoint)
    for name, vector in vectors.items():
        stream.check_width(len(vector.vector), f'--vectors {config.vectors}: vector "{name}"')
    if config.sae:
        progress.phase("loading the SAEs")
    saes = _named(catalogs, [_load(source, stream) for source in config.sae])
    context = context_for(checkpoint, config.engine)
    progress.phase(f"starting vLLM on {checkpoint.name}")
    return Launch(catalogs, saes, vectors, checkpoint, served, model, context, config.engine)


def _of_one_series(catalogs: Sequence[Catalog]) -> tuple[Catalog, ...]:
    """The catalogs; raises InputError for a find run that is given twice, and for those of other series."""
    for place, one in enumerate(catalogs):
        if one.run_id in [before.run_id for before in catalogs[:place]]:
            raise InputError(f"--latents {one.run_id} is given twice")
        first = catalogs[0]
        if one.series.sha256 != first.series.sha256:
            raise InputError(
                f"--latents {first.run_id} is of the checkpoints of {first.series.source}, {one.run_id} of "
                f"those of {one.series.source}; start a server for each"
            )
    return tuple(catalogs)


def _load(source: str, stream: ResidualStream) -> ServedSae:
    """The SAE that --sae names; raises InputError for one that does not read the model's `stream`."""
    sae = load_sae(source)
    stream.check_width(sae.encoder.d_model, f"--sae {source}")
    stream.check_layer(sae.layer, f"--sae {source}")
    return ServedSae(name_of(source), sae, sae.sha256, sae.layer)


def _named(catalogs: Sequence[Catalog], given: Sequence[ServedSae]) -> tuple[ServedSae, ...]:
    """The SAEs of the find runs and of --sae, each once: find runs of one SAE share it from now on.

    Raises InputError where a name stands for two, or --sae gives one twice.
    """
    names = [one.name for one in given]
    if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
        raise InputError(f"--sae gives two SAEs of the name {twice}; leave one out, or rename a folder")
    known: dict[str, ServedSae] = {}
    for one in (*(catalog.sae for catalog in catalogs), *given):
        same = known.setdefault(one.name, one)
        if same.sha256 != one.sha256 or one.layer not in (None, same.layer):
            raise InputError(
                f"two different SAEs are called {one.name} ({same.sae.release}, {one.sae.release}); rename a "
                "folder, for requests go by the name"
            )
    for catalog in catalogs:
        catalog.sae = known[catalog.sae.name]
    return tuple(known.values())


def chosen(ckpt: str, catalog: Catalog, dtype: str | None, progress: Progress) -> tuple[str, Checkpoint]:
    """The checkpoint that --ckpt names, with its id: one of the train run, an adapter folder, or a model."""
    known = catalog.id_of(ckpt)
    if known is not None:
        return known, catalog.open(known)
    if ckpt not in PRESETS and not Path(ckpt).expanduser().is_dir():
        names = dict.fromkeys(one.name for one in catalog.checkpoints.values())
        raise InputError(
            f'--ckpt "{ckpt}" is no checkpoint of {catalog.series.source}; give {", ".join(names)}, one of '
            f"their ids ({', '.join(catalog.checkpoints)}), a folder, or a preset"
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
