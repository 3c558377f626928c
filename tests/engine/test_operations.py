"""The table of operations, and that what people can ask for has a place for each amount."""

from __future__ import annotations

import math

import pytest

from morfi.engine.operations import AMOUNTS, LOW, OPERATIONS, Operation, default_of
from morfi.interventions.config import SteerConfig
from morfi.serve.http.wire import AppliedLatent, Latent


def test_codes_are_places_in_the_table() -> None:
    assert [one.code for one in OPERATIONS.values()] == list(range(len(OPERATIONS)))
    assert all(name == one.name for name, one in OPERATIONS.items())


def test_every_amount_has_an_option_and_a_field() -> None:
    for amount in AMOUNTS:
        assert amount.option in SteerConfig.__dataclass_fields__
        assert amount.field in Latent.model_fields
        assert amount.field in AppliedLatent.model_fields


@pytest.mark.parametrize("operation", list(OPERATIONS.values()), ids=list(OPERATIONS))
def test_a_latent_takes_its_operations_amount_and_no_other(operation: Operation) -> None:
    amounts = {} if operation.amount is None else {operation.amount.field: 2.0}
    given = {**amounts, **({LOW: 1.0} if operation.has_low else {})}
    latent = Latent.model_validate({"id": 3, "op": operation.name, **given})
    assert (latent.operation, latent.amount) == (operation.name, 2.0 if given else None)
    for field in (*(amount.field for amount in AMOUNTS), LOW):
        is_own = field in given
        wrong = given | {field: None if is_own else 2.0}
        with pytest.raises(ValueError, match=f"{'needs' if is_own else 'takes no'} {field}"):
            Latent.model_validate({"id": 3, "op": operation.name, **wrong})


def test_the_first_operation_of_an_amount_is_its_default() -> None:
    assert [default_of(amount).name for amount in AMOUNTS] == ["add", "clamp", "clamp_interval"]


def test_a_latents_default_operation_is_that_of_its_amount() -> None:
    assert Latent.model_validate({"id": 3, "alpha": 1.0}).operation == "add"
    assert Latent.model_validate({"id": 3, "clamp": 1.0}).operation == "clamp"
    assert Latent.model_validate({"id": 3, "low": 1.0, "high": 1.0}).operation == "clamp_interval"


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"low": 2.0, "high": 1.0}, "low is 2, above high, which is 1"),
        ({"low": 2.0}, '"clamp_interval" needs high'),
        ({"high": 2.0}, '"clamp_interval" needs low'),
        ({"low": math.nan, "high": 1.0}, "finite number"),
        ({"low": 0.0, "high": math.inf}, "finite number"),
    ],
)
def test_bounds_that_are_no_interval_are_refused(bounds: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Latent.model_validate({"id": 3, **bounds})
