"""The numbers of a request fit the tables of a device, or are refused in a line, however they come."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from morfi.engine.directions import Direction, pack
from morfi.engine.steering import Capture, Latent, Steering, from_json, spans
from morfi.errors import InputError
from morfi.kernels.expand import ENDLESS, Record
from morfi.serve.plugin.device_requests import DeviceRequests
from morfi.serve.plugin.joint import join
from morfi.serve.plugin.plain import parsed
from morfi.serve.plugin.work import Live

N_PROMPT = 5
EDGES = [
    sign * (2**power + more) for sign in (1, -1) for power in (31, 32, 63, 64) for more in (-2, -1, 0, 1)
]
WHOLE = st.integers(-9, 30) | st.sampled_from([*EDGES, 10**4000, -(10**4000)])
REAL = WHOLE | st.sampled_from([1e38, -3.4e38, 3.5e38, 1e300, float("inf"), float("nan")])
PLACES = st.lists(WHOLE | st.tuples(WHOLE, WHOLE | st.none()).map(list), min_size=1, max_size=4)
LATENT = pack(Direction(torch.ones(4), torch.ones(4)))


def in_python(entry: dict[str, Any]) -> Steering:
    direction = Latent(entry["direction"]["sae"], entry["direction"]["latent"])
    positions = tuple(tuple(one) if isinstance(one, list) else one for one in entry["positions"])
    return Steering(**{**entry, "direction": direction, "positions": positions})


def in_json(entry: dict[str, Any], *, text: bool = False) -> Steering:
    specification = {"steering": [entry]}
    (steering,), _ = from_json(parsed(json.dumps(specification) if text else specification))
    return steering


def outcome(make: Any, *args: Any, **options: Any) -> Any:
    """What is made, or the line with which it is refused."""
    try:
        made = make(*args, **options)
    except InputError as error:
        refusal = str(error)
    else:
        return made
    assert len(refusal.splitlines()) == 1
    assert len(refusal) < 600
    return refusal


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "layer": st.integers(0, 3) | WHOLE,
            "direction": st.fixed_dictionaries({"sae": st.just("s"), "latent": st.integers(0, 3) | WHOLE}),
            "operation": st.sampled_from(["add", "clamp"]),
            "strength": st.integers(1, 3) | REAL,
            "positions": st.lists(st.integers(0, 9), min_size=1) | PLACES,
        }
    )
)
def test_a_steering_fits_the_device_or_is_refused(entry: dict[str, Any]) -> None:
    made = outcome(in_python, entry)
    assert outcome(in_json, entry) == made
    assert outcome(in_json, entry, text=True) == made
    if isinstance(made, str):
        return
    name = str(made.direction)
    joint = join([made], {name: LATENT}, N_PROMPT)
    live = Live("r", False, joint.entries, joint.directions, None, [], None, seat=1, slots={name: 0})
    requests = DeviceRequests(torch.device("cpu"))
    requests.add(live, range(made.layer, made.layer + 1))
    requests.write()
    wanted = spans(made.positions, N_PROMPT) if made.may_change else []
    held = Record(*requests.records[: len(wanted)].T)
    ends = [(first, ENDLESS if stop is None else stop) for first, stop in wanted]
    assert list(zip(held.first.tolist(), held.stop.tolist(), strict=True)) == ends
    assert held.layer.tolist() == [made.layer] * len(wanted)
    assert held.strength.contiguous().view(torch.float32).isfinite().all()


@settings(max_examples=100, deadline=None)
@given(st.lists(WHOLE, min_size=1, max_size=4), PLACES)
def test_a_capture_fits_the_device_or_is_refused(layers: list[int], places: list[Any]) -> None:
    whole = {"capture": {"layers": layers, "positions": places}}
    made = outcome(lambda: from_json(parsed(whole))[1])
    if isinstance(made, str):
        return
    live = Live("r", False, (), {}, made, places := spans(made.positions, N_PROMPT), None, seat=1)
    requests = DeviceRequests(torch.device("cpu"))
    requests.add(live, range(max(made.layers) + 1))
    requests.write()
    held = Record(*requests.records[: len(places)].T)
    assert held.first.tolist() == [first for first, _ in places]


@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_that_python_does_not_write_are_refused_as_well(sign: int) -> None:
    huge = sign * 10**5000
    made: list[Any] = [
        lambda: Steering(huge, "d"),
        lambda: Steering(0, Latent("s", huge)),
        lambda: Steering(0, "d", strength=huge),
        lambda: Steering(0, "d", positions=(huge,)),
        lambda: Steering(0, "d", positions=((0, huge),)),
        lambda: Steering(0, "d", positions=((0, 1, huge),)),  # type: ignore[arg-type]
        lambda: Steering(0, "d", positions=huge),  # type: ignore[arg-type]
        lambda: Steering(0, huge),  # type: ignore[arg-type]
        lambda: Steering(0, "d", huge),  # type: ignore[arg-type]
        lambda: Capture((huge,)),
        lambda: Capture(huge),  # type: ignore[arg-type]
        lambda: Latent(huge, 0),  # type: ignore[arg-type]
    ]
    for one in made:
        assert isinstance(outcome(one), str)


@pytest.mark.parametrize("number", [1e39, -1e39, float("inf"), float("nan")])
def test_what_float32_does_not_hold_is_no_number_of_a_latent(number: float) -> None:
    both: list[dict[str, Any]] = [{"bias": number}, {"threshold": abs(number)}]
    for own in both:
        with pytest.raises(InputError, match="that float32 holds"):
            Direction(torch.ones(4), torch.ones(4), **own)
