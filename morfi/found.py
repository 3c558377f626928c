"""What a find run holds, read back: its latents, the SAE that they are of, and what they were found in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from morfi.captured import Activations, Condition, load_activations
from morfi.errors import InputError
from morfi.finding import KIND
from morfi.sae import Sae, load_sae
from morfi.store.records import RunRecord

if TYPE_CHECKING:
    import pyarrow as pa

    from morfi.store import Store


@dataclass(frozen=True, eq=False, slots=True)
class Found:
    """A find run: `latents` holds the columns of `latent_trend`, the selected latents first, by score."""

    run: RunRecord
    sae: Sae
    activations: Activations
    latents: pa.Table

    @property
    def layer(self) -> int:
        """The decoder layer after which the SAE reads, and after which its latents are steered."""
        return self.activations.layer

    def condition(self, ckpt_sha256: str) -> Condition | None:
        """The residual streams of this checkpoint, if they were captured and compared."""
        own = [one for one in self.activations.conditions if one.row.ckpt_sha256 == ckpt_sha256]
        return own[0] if own else None

    def median_norm(self, ckpt_sha256: str) -> float:
        """The median length of this checkpoint's residual streams: the unit of steering strengths.

        Of all conditions' together where this checkpoint was not captured.
        """
        import torch

        own = self.condition(ckpt_sha256)
        chosen = [own] if own is not None else list(self.activations.conditions)
        return float(torch.cat([one.values for one in chosen]).norm(dim=1).median())


def load_found(store: Store, run_id: str) -> Found:
    """What the find run `run_id` holds; raises InputError where its SAE or captures are not as they were."""
    run = store.run_of_kind(run_id, KIND)
    if store.trend_summary(run.run_id) is None:
        raise InputError(f"{run.run_id} has not ended; give its command again to finish it")
    config = run.config
    sae = load_sae(config["sae"])
    if sae.sha256 != config["sae_sha256"]:
        raise InputError(
            f"{config['sae']} is not the SAE of {run.run_id}: its sha256 is {sae.sha256[:16]}, expected "
            f"{config['sae_sha256'][:16]}; bring back that SAE, or run `morfi find` with this one"
        )
    activations = load_activations(store, config["activations"], config["layer"], config["epochs"])
    return Found(run, sae, activations, store.latents(run.run_id))
