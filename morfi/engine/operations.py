"""The operations of steering, one row each: everything that is said of one anywhere is read from here.

Another operation is a row of this table, its arithmetic in `morfi.kernels.residual` (in Triton, in torch and
in the reference), and in `morfi.serve.plugin.joint` what it does beside others at the same position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Amount:
    """A number that an operation takes, under the names that people give it."""

    name: str  # in Python and in messages
    option: str  # of `morfi steer`: a list of them
    field: str  # of a latent over HTTP
    says: str
    in_norms: bool = False  # whether its unit is the median residual norm at the layer


ALPHA = Amount("alpha", "alphas", "alpha", "strength alpha (median residual norms)", in_norms=True)
VALUE = Amount("value", "values", "clamp", "value that the latent is set to")
HIGH = Amount("high", "highs", "high", "largest value that the latent keeps")
LOW = "low"  # the field over HTTP of an interval's lower bound; `morfi steer` has one for a run


@dataclass(frozen=True, slots=True)
class Operation:
    """A change along a direction d of the residual stream x; f is the activation of its latent."""

    name: str
    code: int  # its place in the table, which is what kernels get
    formula: str  # what becomes of x
    says: str  # the same to readers who do not know f
    done: str  # what a latent is then, before the amount where there is one
    amount: Amount | None = None
    needs_latent: bool = False  # whether f is read: only a latent with its encoder has one
    is_sum: bool = False  # whether strength * d is added: nothing at 0, and several are one along their sum
    only_firing: bool = False  # whether nothing changes where f is 0
    puts_in: bool = False  # whether strength * d comes into x, whatever x is
    has_low: bool = False  # whether the strength is the upper bound of an interval with a lower one, `low`

    def put_in(self, strength: float, low: float = 0.0) -> float:
        """The factor of d that comes into x, whatever x is: of an interval, what it makes of f = 0."""
        return min(max(0.0, low), strength) if self.has_low else strength


ADD = Operation(
    "add",
    0,
    formula="x + alpha u d, u the median residual norm",
    says="Adds strength \u00d7 the median residual norm along the latent\u2019s decoder row.",
    done="steered by",
    amount=ALPHA,
    is_sum=True,
    puts_in=True,
)
ABLATE = Operation(
    "ablate",
    1,
    formula="x - f d",
    says="Takes the latent\u2019s own contribution out.",
    done="ablated",
    needs_latent=True,
    only_firing=True,
)
CLAMP = Operation(
    "clamp",
    2,
    formula="the latent is set to `clamp`",
    says="Sets the latent to a value of its own scale.",
    done="clamped to",
    amount=VALUE,
    needs_latent=True,
    puts_in=True,
)
PROJECT = Operation(
    "project",
    3,
    formula="x without its component along d",
    says="Takes everything along the latent\u2019s decoder row out.",
    done="projected out",
)
CLAMP_FIRING = Operation(
    "clamp_firing",
    4,
    formula="the latent is set to `clamp` where it fires (f > 0), and left as it is elsewhere",
    says="Sets the latent to a value of its own scale where it fires; elsewhere nothing changes.",
    done="where it fires, clamped to",
    amount=VALUE,
    needs_latent=True,
    only_firing=True,
    puts_in=True,
)
CLAMP_INTERVAL = Operation(
    "clamp_interval",
    5,
    formula="the latent is set to `low` where f < low, to `high` where f > high, and left as it is between",
    says="Keeps the latent between two values of its own scale; between them nothing changes.",
    done="kept within",
    amount=HIGH,
    needs_latent=True,
    puts_in=True,
    has_low=True,
)

OPERATIONS: Mapping[str, Operation] = {
    one.name: one for one in (ADD, ABLATE, CLAMP, PROJECT, CLAMP_FIRING, CLAMP_INTERVAL)
}
AMOUNTS = tuple(dict.fromkeys(one.amount for one in OPERATIONS.values() if one.amount is not None))


def default_of(amount: Amount) -> Operation:
    """The operation that is meant where only its amount is given: the first in the table."""
    return next(one for one in OPERATIONS.values() if one.amount == amount)
