"""What a request may name: latents of several SAEs, and vectors, each after its own layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from fake_app import GOOD, FakeAdmission, Served, error_of, make_sae
from hypothesis import given, settings
from hypothesis import strategies as st

from morfi.engine.directions import Direction, pack
from morfi.engine.steering import Latent as SaeLatent
from morfi.engine.steering import Steering as EngineSteering
from morfi.engine.steering import to_json
from morfi.engine.strengths import steering_of
from morfi.errors import InputError
from morfi.serve.http.gate import Refused
from morfi.serve.http.steerable import Steerable, size_of
from morfi.serve.http.wire import Latent, Steering, Vector
from morfi.serve.plugin.step import ResidualState

VECTORS: Mapping[str, Direction] = {
    "up": Direction(torch.tensor([0, 3.0, 4.0, 0])),
    "first": Direction(torch.tensor([2.0, 0, 0, 0])),
}


@pytest.fixture
def steerable() -> Steerable:
    found = Steerable(FakeAdmission(), [make_sae("a"), make_sae("b", 0), make_sae("anywhere", None)])  # type: ignore[arg-type]
    found.add_vectors(VECTORS)
    return found


def latent(**given: Any) -> Latent:
    return Latent(**{"id": 3, "alpha": 1.0, **given})


def test_each_name_is_found_after_its_own_layer(steerable: Steerable) -> None:
    for sae, layer in (("a", 1), ("b", 0)):
        found = steerable.find(latent(sae=sae), None)
        assert (found.layer, found.engine, found.sae) == (layer, SaeLatent(f"the-{sae}", 3), sae)
        assert found.length == pytest.approx(1.5)
    assert steerable.find(latent(sae="anywhere", layer=0), None).layer == 0
    assert steerable.find(latent(sae="anywhere"), 0).layer == 0
    vector = steerable.find(Vector(vector="up", layer=1, alpha=1.0), 0)
    assert vector.layer == 1
    torch.testing.assert_close(vector.unit, torch.tensor([0, 0.6, 0.8, 0], dtype=torch.float64))
    assert steerable.vectors["up"].length == 5
    assert steerable.vectors["up"].sha256 == VECTORS["up"].sha256


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (latent(), "latent 3: there are several SAEs; name one in sae: a, b, anywhere"),
        (latent(sae="c"), "latent 3: no SAE of this name is served; there are: a, b, anywhere"),
        (latent(sae="a", layer=0), "layer 0: a reads after layer 1"),
        (latent(sae="anywhere"), "anywhere does not say which layer it reads; give layer"),
        (latent(sae="anywhere", layer=2), "anywhere: layer 2; the model has the layers 0 to 1"),
        (latent(sae="a", id=96), "latent 96: there are the latents 0 to 95 of a"),
        (Vector(vector="down", layer=0, alpha=1.0), 'vector "down": there is no such vector; there are: up'),
        (Vector(vector="up", alpha=1.0), 'vector "up": give the layer after which it is steered'),
        (Vector(vector="up", layer=2, alpha=1.0), 'vector "up": layer 2; the model has the layers 0 to 1'),
        (
            Vector(vector="up", layer=0, op="ablate"),
            '"ablate" cannot be done with a vector; add,',
        ),
    ],
)
def test_what_could_mean_two_things_or_none_is_refused(steerable: Steerable, one: Any, message: str) -> None:
    with pytest.raises(Refused) as refused:
        steerable.find(one, None)
    assert refused.value.status == 422
    assert message in str(refused.value)


def test_vectors_that_do_not_fit_leave_all_as_it_was(steerable: Steerable) -> None:
    before, known = dict(steerable.vectors), len(steerable._admission.registry)
    for vectors, message in (
        (
            {"new": Direction(torch.tensor([1.0, 0, 0, 0])), "narrow": Direction(torch.ones(1))},
            'vector "narrow": this vector: width 1',
        ),
        (
            {"new": Direction(torch.tensor([1.0, 0, 0, 0])), "up": Direction(torch.tensor([1.0, 0, 0, 0]))},
            'vector "up": the name is taken',
        ),
    ):
        with pytest.raises(InputError, match=message):
            steerable.add_vectors(vectors)
    assert steerable.vectors == before
    assert len(steerable._admission.registry) == known


def test_a_layer_that_the_model_lacks_is_refused_at_start() -> None:
    with pytest.raises(InputError, match="SAE deep: layer 2; the model has the layers 0 to 1"):
        Steerable(FakeAdmission(), [make_sae("deep", 2)])  # type: ignore[arg-type]


def sized(steerable: Steerable, steering: Steering) -> tuple[float, int]:
    found = [steerable.find(one, steering.layer) for one in steering.entries]
    return size_of(steering, found, {0: 1.0, 1: 2.0})


def test_the_size_adds_up_what_acts_at_one_place(steerable: Steerable) -> None:
    first: dict[str, Any] = {"vector": "first", "alpha": 2.0}  # along the same direction as all latents
    cases: list[tuple[dict[str, Any], float, int]] = [
        ({**first, "layer": 1}, 5.0, 1),
        ({**first, "layer": 0}, 3.0, 1),
        ({**first, "layer": 0, "alpha": -4.0}, 4.0, 0),
        ({**first, "layer": 1, "positions": "generated"}, 3.0, 1),
        ({**first, "layer": 1, "positions": "last_prompt"}, 5.0, 1),
        ({"vector": "up", "layer": 1, "alpha": 4.0}, 5.0, 1),
    ]
    for vector, size, layer in cases:
        steering = Steering(
            latents=[latent(sae="a", alpha=3.0, positions="prompt")], vectors=[Vector(**vector)]
        )
        found, where = sized(steerable, steering)
        assert where == layer, vector
        assert found == pytest.approx(size), vector
    clamped = Steering(latents=[Latent(id=3, sae="a", clamp=4.0)] * 2)
    assert sized(steerable, clamped)[0] == pytest.approx(4.0 * 1.5 / 2.0)
    between = Steering(latents=[Latent(id=3, sae="a", low=1.0, high=400.0)])
    assert sized(steerable, between)[0] == pytest.approx(1.5 / 2.0)
    for beyond in ([latent(sae="a", alpha=1e308)] * 2, [Latent(id=3, sae="a", clamp=1.7e308)]):
        assert sized(steerable, Steering(latents=beyond))[0] == math.inf


@settings(max_examples=60, deadline=None)
@given(
    st.booleans(),
    st.sampled_from(["alpha", "clamp", "high"]),
    st.floats(-10, 10),
    st.floats(-3, 4),
    st.integers(0, 1000),
)
def test_the_size_is_what_the_operation_moves_a_stream_by(
    rescaled: bool, field: str, amount: float, norm_digits: float, seed: int
) -> None:
    drawn = torch.randn(4, generator=torch.Generator().manual_seed(seed))
    x = drawn * (10**norm_digits / drawn.norm())
    sae = make_sae("a", norm_rescaled=rescaled)
    amounts: dict[str, Any] = {field: amount, **({"low": amount - 1} if field == "high" else {})}
    one = Latent(id=3, **amounts)
    asked = Steering(latents=[one])
    found = [Steerable(FakeAdmission(), [sae]).find(one, None)]  # type: ignore[arg-type]
    size, _ = size_of(asked, found, {1: float(x.norm())})
    # A latent that never fires, so that all of the change is what is put in.
    latent = Direction(sae.sae.W_dec[3], torch.zeros(4), norm_rescaled=rescaled)
    own = steering_of(0, "d", one.operation, one.amount, median_norm=float(x.norm()), low=one.lower or 0.0)
    assert float((stepped(own, latent, x) - x).norm() / x.norm()) == pytest.approx(size, rel=1e-3, abs=1e-6)


def stepped(steering: EngineSteering, direction: Direction, x: torch.Tensor) -> torch.Tensor:
    """The stream x [d_model] after the operation on layer 0."""
    state = ResidualState(range(1), len(x), 8, torch.device("cpu"))
    ready = {**to_json([steering], None), "report": True, "shard": None, "directions": {"d": pack(direction)}}
    state.add("r", 1, {"morfi": ready})
    state.begin(["r"], [0], [1])
    after = x[None].clone()
    state.apply(0, after, torch.zeros_like(after))
    state.end(torch.arange(1))
    return after[0]


def test_a_request_may_mix_them(served: Served) -> None:
    served.state.steerable.saes["b"] = make_sae("b", 0)
    served.state.steerable._in_engine["b"] = "the-b"
    served.state.steerable.add_vectors(VECTORS)
    served.state.norms._measured[0, "a"] = served.state.norms.known(1, "a")  # type: ignore[assignment]
    assert "name one in sae: sae, b" in error_of(served.post("/v1/completions", GOOD), 422)["message"]
    steering: dict[str, Any] = {
        "latents": [{"sae": "sae", "id": 3, "alpha": 1.5}, {"sae": "b", "id": 4, "clamp": 2.0}],
        "vectors": [{"vector": "up", "layer": 0, "alpha": -0.5, "positions": "generated"}],
        "positions": "prompt",
    }
    found = served.post("/v1/completions", {"prompt": "Q", "steering": steering}).json()["steering_applied"]
    assert [(one["sae"], one["layer"], one["positions"]) for one in found["latents"]] == [
        ("sae", 1, "prompt"),
        ("b", 0, "prompt"),
    ]
    assert found["vectors"] == [
        {"vector": "up", "op": "add", "alpha": -0.5, "layer": 0, "positions": "generated", "strength": -1.0}
    ]
    (followed,) = served.serving.requests[-1]._followed
    assert [(one.layer, one.operation, one.positions) for one in followed.steering] == [
        (1, "add", "prompt"),
        (0, "clamp", "prompt"),
        (0, "add", "generated"),
    ]
    for steering in ({}, {"latents": [{"sae": "sae", "id": 3, "alpha": 1.0}] * 8, "vectors": [GOOD]}):
        error_of(served.post("/v1/completions", {"prompt": "Q", "steering": steering}), 422)
