"""From what people say about a steering, an operation and how much of it, to what an engine is asked for."""

from __future__ import annotations

from morfi.engine.operations import OPERATIONS
from morfi.engine.steering import Latent, Positions, Steering
from morfi.errors import InputError


def steering_of(
    layer: int,
    direction: str | Latent,
    operation: str,
    amount: float | None,
    *,
    median_norm: float,
    positions: Positions = "all",
    low: float = 0.0,
) -> Steering:
    """The steering after `layer` along `direction`, which an engine knows by that name.

    `amount` is what `morfi.engine.operations` says: alpha for "add", in units of `median_norm` (the median
    residual norm at the layer), and the latent's own value for what sets it; `low` is the lower bound of an
    interval. Raises InputError where an operation lacks an amount or takes none.
    """
    known = OPERATIONS.get(operation)
    taken = None if known is None else known.amount
    if taken is None:
        if amount is not None:
            raise InputError(f"{operation} takes no strength, got {amount!r}; leave it out")
        return Steering(layer, direction, operation, positions=positions, low=low)
    if amount is None:
        article = "an" if taken.name[0] in "aeiou" else "a"
        raise InputError(f"{operation} needs {article} {taken.name}")
    if not isinstance(amount, int | float) or isinstance(amount, bool):
        raise InputError(f"{operation} takes a number as its {taken.name}, got {amount!r}")
    scale = median_norm if taken.in_norms else 1.0
    return Steering(layer, direction, operation, float(amount) * scale, positions, low)
