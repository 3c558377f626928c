"""The directions of a steer run: latents, and those that they are compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from morfi.engine.operations import ADD, OPERATIONS, PROJECT
from morfi.errors import InputError
from morfi.interventions.config import TRENDS, SteerConfig
from morfi.interventions.rivals import Rivals, find_rivals
from morfi.latents.activations import Activations
from morfi.latents.find import Found
from morfi.store.records import DirectionRow

if TYPE_CHECKING:
    import torch

KINDS = ("latent", "combined", "rival", "delta_u", "control", "random", "scan")


@dataclass(frozen=True, eq=False, slots=True)
class Target:
    """A direction with its unit vector, float32 [d_model], as it is stored in `row`."""

    row: DirectionRow
    vector: torch.Tensor


def find_targets(
    found: Found, config: SteerConfig, median_norm: float, is_known: Mapping[str, bool] | None
) -> tuple[list[Target], Mapping[str, Sequence[int]]]:
    """The latents of `config`, the composite direction, rivals, control latents and random directions.

    With the latents that each rival rule selects, of which those of `config` are no target a second time.
    `median_norm` is that of the steered checkpoint; `is_known` says by id which questions the base model
    knew. Raises InputError where there are no such latents.
    """
    import torch

    rows = found.latents.select(["latent", "direction", "s", "firing", "selected"]).to_pylist()
    chosen = _chosen(rows, found, config)
    rivals = find_rivals(found, len(chosen), is_known) if config.rivals else Rivals({}, ())
    others = _others(rows, chosen, rivals)
    controls = control_latents(rows, chosen, config.n_controls(len(chosen)), found.activations, others)
    draw = torch.Generator().manual_seed(config.seed)
    d_model = found.sae.W_dec.shape[1]
    latents = [
        (kind, row)
        for kind, own in (("latent", chosen), ("rival", others), ("control", controls))
        for row in own
    ]
    named: list[tuple[str, str, Mapping[str, Any], torch.Tensor]] = [
        (f"{kind} {row['latent']}", kind, row, found.sae.W_dec[row["latent"]]) for kind, row in latents
    ]
    named.insert(len(chosen), ("delta_u", "delta_u", {}, composite(found.activations)))
    for number in range(config.n_random(len(chosen))):
        named.append((f"random {number + 1}", "random", {}, torch.randn(d_model, generator=draw)))
    where: dict[str, Any] = {"layer": found.layer, "operation": config.op, "median_norm": median_norm}
    targets = [
        Target(_row(position, name, kind, row, **where), unit(vector, name))
        for position, (name, kind, row, vector) in enumerate(named)
    ]
    return targets, rivals.picks


def scan_target(activations: Activations, position: int, median_norm: float) -> Target:
    """The composite direction after the layer of `activations`, to be added."""
    name = f"delta_u@{activations.layer}"
    layer = activations.layer
    row = _row(position, name, "scan", {}, layer=layer, operation=ADD.name, median_norm=median_norm)
    return Target(row, unit(composite(activations), name))


def composite(activations: Activations) -> torch.Tensor:
    """delta_u: the mean residual stream of the highest level less that of the lowest, [d_model]."""
    import torch

    levels = activations.levels
    low, high = min(levels), max(levels)
    if low == high:
        raise InputError(
            f"{activations.run.run_id} holds level {low} only; delta_u needs two levels, so capture more"
        )
    ends = [
        torch.stack(
            [
                one.values.double().mean(0)
                for one, level in zip(activations.residuals, levels, strict=True)
                if level == end
            ]
        ).mean(0)
        for end in (high, low)
    ]
    return (ends[0] - ends[1]).float()


def control_latents(
    rows: Sequence[Mapping[str, Any]],
    chosen: Sequence[Mapping[str, Any]],
    n: int,
    activations: Activations,
    others: Sequence[Mapping[str, Any]] = (),
) -> list[Mapping[str, Any]]:
    """Up to `n` latents without a trend that fire about as often as the `chosen` ones, in turn.

    Without a trend: not selected, and |S| at most a third of what it can be. `others` are steered along
    anyway, and are no controls.
    """
    levels = activations.levels
    largest = sum(a < b for a in levels for b in levels)
    taken = {row["latent"] for row in (*chosen, *others)}
    pool = [
        row
        for row in rows
        if not row["selected"]
        and row["firing"] > 0
        and abs(row["s"]) <= largest / 3
        and row["latent"] not in taken
    ]
    found: list[Mapping[str, Any]] = []
    while pool and chosen and len(found) < n:
        wanted = max(chosen[len(found) % len(chosen)]["firing"], 1e-9)
        best = min(
            pool,
            key=lambda row: (abs(math.log(row["firing"] / wanted)), abs(row["s"]), row["latent"]),
        )
        pool.remove(best)
        found.append(best)
    return found


def _others(
    rows: Sequence[Mapping[str, Any]], chosen: Sequence[Mapping[str, Any]], rivals: Rivals
) -> list[Mapping[str, Any]]:
    """The rows of what rival rules select beside the `chosen` ones, each once, with its change's sign."""
    taken = {row["latent"] for row in chosen}
    picked = dict.fromkeys(latent for picks in rivals.picks.values() for latent in picks)
    known = {row["latent"]: row for row in rows}
    return [{**known[latent], "direction": rivals.change[latent]} for latent in picked if latent not in taken]


def unit(vector: torch.Tensor, name: str) -> torch.Tensor:
    """`vector` at length 1; raises InputError where it has none."""
    length = float(vector.double().norm())
    if not length > 0 or not math.isfinite(length):
        raise InputError(f"{name} has the length {length:g}; nothing can be steered along it")
    return (vector.double() / length).float()


def _chosen(rows: Sequence[Mapping[str, Any]], found: Found, config: SteerConfig) -> list[Mapping[str, Any]]:
    """The rows of the latents to steer along, in order of rank."""
    if config.ids is not None:
        known = {row["latent"]: row for row in rows}
        for latent in config.ids:
            if latent not in known:
                raise InputError(
                    f"latent {latent} is out of range for d_sae = {len(rows)}; give 0 to {len(rows) - 1}"
                )
        return [known[latent] for latent in dict.fromkeys(config.ids)]
    signs = TRENDS[config.trend]
    selected = [row for row in rows if row["selected"] and row["direction"] in signs]
    if not selected and config.top:
        which = "" if config.trend == "any" else f"{config.trend} "
        raise InputError(
            f"{found.run.run_id} selected no {which}latents; name some with --ids, loosen the criteria of "
            "`morfi find`, or give --top 0 for the baselines alone"
        )
    return selected[: config.top]


def _row(
    position: int,
    name: str,
    kind: str,
    latent: Mapping[str, Any],
    *,
    layer: int,
    operation: str,
    median_norm: float,
) -> DirectionRow:
    # What is no latent has no value that could be taken out or set; to project it out comes closest.
    if not latent and OPERATIONS[operation].needs_latent:
        operation = PROJECT.name
    return DirectionRow(
        position=position,
        direction=name,
        kind=kind,
        latent=latent.get("latent"),
        layer=layer,
        operation=operation,
        median_norm=median_norm,
        trend=latent.get("direction", 0),
        s=latent.get("s"),
        firing=latent.get("firing"),
        parts={},
    )
