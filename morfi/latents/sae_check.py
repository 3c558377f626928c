"""How well an SAE renders a model's residual stream: `morfi sae check`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from morfi.errors import InputError
from morfi.runs.options import check_numbers, option, run_of

if TYPE_CHECKING:
    import torch

    from morfi.latents.activations import LeftOut
    from morfi.latents.sae import Sae
    from morfi.store import Store

_CHUNK = 256  # tokens at a time


@dataclass(frozen=True, eq=False, slots=True)
class Quality:
    """The quality of an SAE on some tokens.

    `explained_variance` is 1 less the squared error over the squared distance from the mean; `l0` the latents
    that fire a token; `fired` bool [d_sae] those that fired at all.
    """

    n_tokens: int
    explained_variance: float
    l0: float
    fired: torch.Tensor

    @property
    def n_dead(self) -> int:
        """How many latents never fired."""
        return len(self.fired) - int(self.fired.sum())


def measure(sae: Sae, chunks: Iterable[torch.Tensor]) -> Quality:
    """The quality of `sae` on all rows of `chunks` together, float tensors [n, d_model]."""
    import torch

    d_model, d_sae = sae.encoder.d_model, sae.encoder.d_sae
    total = torch.zeros(d_model, dtype=torch.float64)
    squares = errors = n_active = 0.0
    n, fired = 0, torch.zeros(d_sae, dtype=torch.bool)
    for chunk in chunks:
        if chunk.ndim != 2 or chunk.shape[1] != d_model:
            raise ValueError(f"chunks of the shape {tuple(chunk.shape)}, expected [n, {d_model}]")
        for start in range(0, len(chunk), _CHUNK):
            x = chunk[start : start + _CHUNK].float()
            latents = sae.encode(x)
            errors += float((sae.decode(latents, x) - x).double().square().sum())
            squares += float(x.double().square().sum())
            total += x.double().sum(0)
            n_active += float((latents != 0).sum())
            fired |= (latents != 0).any(0)
            n += len(x)
    if not n:
        raise InputError("there are no activations to check the SAE on")
    variance = squares - float(total.square().sum()) / n
    explained = 1 - errors / variance if variance > 0 else float("-inf")
    return Quality(n, explained, n_active / n, fired)


def _by_worth(explained: float) -> tuple[bool, float]:
    return not math.isnan(explained), explained


def check_explains(qualities: Sequence[tuple[str, Quality]], least: float, *, force: bool) -> None:
    """Raises InputError where the SAE explains too little of a condition's variance, but with `force`."""
    name, worst = min(qualities, key=lambda found: _by_worth(found[1].explained_variance))
    if not worst.explained_variance >= least and not force:
        raise InputError(
            f"the SAE explains {worst.explained_variance:.3f} of the variance of {name}, less than "
            f"{least:g}: its latents say little about this model. One that `morfi sae train --ckpts` trains "
            "on these checkpoints may explain more; if this is one, give that more --tokens, a larger --k or "
            "--d-sae, or another --layer; --force uses it as it is"
        )


@dataclass(frozen=True, slots=True)
class SaeOnRun:
    """An SAE, and the activations that it reads."""

    activations: str = run_of("capture")
    sae: str = option("The SAE.", metavar="FOLDER|PRESET|RELEASE:ID")
    layer: int | None = option("The layer to read.", None, unset="the SAE's own")
    # Along levels, see `Axis`.
    epochs: str | None = option("Epoch setting of the checkpoints.", None, unset="early-stop, else the most")

    def __post_init__(self) -> None:
        check_numbers({"layer": (self.layer, 0)})


@dataclass(frozen=True, slots=True)
class Check:
    """How well an SAE renders a capture; rows are name, tokens, explained variance, L0 and dead latents."""

    run_id: str
    layer: int
    d_sae: int
    rows: tuple[tuple[str, int, float, float, int], ...]  # those of all conditions together last
    left_out: tuple[LeftOut, ...]


def check(store: Store, config: SaeOnRun) -> Check:
    """Measures an SAE on each condition of a capture run."""
    from morfi.latents.activations import Axis, captured_stream, layer_of, load_activations
    from morfi.latents.sae import load_sae

    sae = load_sae(config.sae)
    captured_stream(store, config.activations).check_width(sae.encoder.d_model, f"--sae {config.sae}")
    layer = layer_of(store, config.activations, sae.layer, config.layer, config.sae)
    found = load_activations(store, config.activations, layer, Axis(epochs=config.epochs))
    qualities = [(one.condition.label, measure(sae, [one.values])) for one in found.residuals]
    qualities.append(("all together", measure(sae, [one.values for one in found.residuals])))
    rows = tuple((name, q.n_tokens, q.explained_variance, q.l0, q.n_dead) for name, q in qualities)
    return Check(found.run.run_id, layer, sae.encoder.d_sae, rows, found.left_out)
