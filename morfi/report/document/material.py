"""What a report is made of: the runs of an experiment, and what is read from them once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.checkpoints import model_here
from morfi.conditions.file import base_named
from morfi.conditions.load import names_file
from morfi.errors import InputError
from morfi.interventions.config import SteerRun
from morfi.interventions.outcome import Outcome, Steered
from morfi.latents.activity import MAX_DRAWN, Activity, activity_of, found_here
from morfi.latents.find import FindRun, Found
from morfi.latents.logit_lens import SpokenFor, spoken_for
from morfi.latents.sae import load_sae
from morfi.report.findings import Experiment
from morfi.report.findings.chain import Chain
from morfi.report.findings.flips import Pair, pairs_of
from morfi.report.trend_figure import drawn
from morfi.runs.settings import settings_of

if TYPE_CHECKING:
    from morfi.checkpoints.model_files import ModelFiles
    from morfi.store import Store
    from morfi.store.records import RunRecord

SHOWN = 12  # latents that have a card
_CLAIMED = ("latent", "delta_u")  # kinds of directions whose answers are shown one by one


@dataclass(frozen=True)
class Material:
    """What sections are made of: the experiment's numbers, and what is read from its runs once."""

    experiment: Experiment

    @property
    def store(self) -> Store:
        """The store of its runs."""
        return self.experiment.store

    @property
    def chain(self) -> Chain:
        """Its runs, one of each command."""
        return self.experiment.chain

    @property
    def steered(self) -> Steered | None:
        """What the steer run of the chain found: of one seed."""
        return self.experiment.steered

    @property
    def one_seed(self) -> str:
        """Whose numbers those of `steered` are, in words; empty where there is one seed."""
        n, run = len(self.experiment.by_seed), self.chain.steer
        return f"seed {run.config['train_seed']} alone, one of {n}" if run is not None and n > 1 else ""

    @property
    def steering(self) -> SteerRun:
        """The settings of the steer run."""
        assert self.chain.steer is not None
        return settings_of(self.chain.steer, SteerRun)

    @cached_property
    def pairs(self) -> Mapping[str, Sequence[Pair]]:
        """Questions and answers of the first latent and of delta_u of one seed, by direction."""
        run = self.chain.steer
        if run is None or self.steered is None:
            return {}
        shown = [one for kind in _CLAIMED for one in self.of_kind(kind)[:1]]
        split = self.steering.report_on
        return {one.direction.direction: pairs_of(self.store, run, one, split) for one in shown}

    def of_kind(self, kind: str) -> list[Outcome]:
        """The reported outcomes of one seed along a kind of direction, the best on `choose_on` first."""
        found = self.steered.outcomes if self.steered is not None else ()
        return [one for one in found if one.direction.kind == kind and one.reported is not None]

    @cached_property
    def found(self) -> Found | None:
        """The find run read back; None where there is none, or its SAE or captures are gone."""
        return None if self.chain.find is None else found_here(self.store, self.chain.find.run_id)

    @cached_property
    def activity(self) -> Mapping[str, Mapping[int, Activity]]:
        """The activity by axis of the latents that have a line or a card; {} where it cannot be known."""
        run = self.chain.find
        rows = [] if run is None else self.store.latents(run.run_id, selected=True).to_pylist()
        if not rows or self.found is None:
            return {}
        shown = dict.fromkeys(row["latent"] for row in (*rows[:SHOWN], *drawn(rows)))
        return activity_of(self.store, self.found, list(shown))

    @cached_property
    def tokens(self) -> Mapping[int, SpokenFor]:
        """The tokens that the latents with a card speak for; {} where the model or the SAE is not here."""
        run = self.chain.find
        if run is None or run.base_sha256 is None:
            return {}
        latents = [
            row["latent"] for row in self.store.latents(run.run_id, selected=True, limit=SHOWN).to_pylist()
        ]
        try:
            model = self._base_model(run)
            if not latents or model is None:
                return {}
            # Its captures may be gone while the SAE is here.
            sae = self.found.sae if self.found is not None else load_sae(settings_of(run, FindRun).sae)
            is_same = self.found is not None or sae.sha256 == run.config["sae_sha256"]
            found = spoken_for(model, sae.W_dec[latents]) if is_same else []
        except InputError:
            return {}
        return dict(zip(latents, found, strict=False))

    def _base_model(self, run: RunRecord) -> ModelFiles | None:
        """The files of the experiment's base model, where they lie here as they were."""
        assert run.base_sha256 is not None
        try:
            named = base_named(Path(run.ckpt)) if names_file(run.ckpt) else run.ckpt
        except InputError:
            return None
        return model_here(named, run.base_sha256)

    @property
    def n_resamples(self) -> int:
        """How many resamples the bands of `activity` are of."""
        assert self.chain.find is not None
        return min(settings_of(self.chain.find, FindRun).resamples, MAX_DRAWN)
