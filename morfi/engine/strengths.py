"""From what people say about a steering, an operation and how much of it, to what an engine is asked for."""

from __future__ import annotations

from morfi.engine.steering import Latent, Positions, Steering
from morfi.errors import InputError

AMOUNTS = {"add": "alpha", "clamp": "value"}  # what each operation takes; the others take nothing


def steering_of(
    layer: int,
    direction: str | Latent,
    operation: str,
    amount: float | None,
    *,
    median_norm: float,
    positions: Positions = "all",
) -> Steering:
    """The steering after `layer` along `direction`, which an engine knows by that name.

    `amount` is alpha for "add", in units of `median_norm` (the median residual norm at the layer), and the
    latent's own value for "clamp". Raises InputError where an operation lacks it or takes none.
    """
    named = AMOUNTS.get(operation)
    if named is None and amount is not None:
        raise InputError(f"{operation} takes no strength, got {amount!r}; leave it out")
    if named is not None and amount is None:
        raise InputError(f"{operation} needs {'an' if named == 'alpha' else 'a'} {named}")
    if amount is None:
        return Steering(layer, direction, operation, positions=positions)
    if not isinstance(amount, int | float) or isinstance(amount, bool):
        raise InputError(f"{operation} takes a number as its {named}, got {amount!r}")
    scale = median_norm if operation == "add" else 1.0
    return Steering(layer, direction, operation, float(amount) * scale, positions)
