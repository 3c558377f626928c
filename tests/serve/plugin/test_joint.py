"""Steerings of one request together: nothing is left that is projected out, contradictions are refused."""

from __future__ import annotations

import random
from array import array

import pytest
import torch
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from morfi.engine.directions import Direction, pack, unpack
from morfi.engine.operations import OPERATIONS, PROJECT, Operation
from morfi.engine.steering import Positions, Steering, spans, to_json
from morfi.errors import InputError
from morfi.kernels.residual import UNFIT
from morfi.serve.plugin.finite import check_amounts
from morfi.serve.plugin.joint import Joint, join, put_in_together
from morfi.serve.plugin.step import ResidualState

D_MODEL, N_PROMPT, N_TOKENS = 8, 5, 9
PLACES: tuple[Positions, ...] = (
    "all",
    "prompt",
    "generated",
    "last_prompt",
    (0, -2),
    ((1, 4),),
    ((-3, None),),
)


def make_directions() -> dict[str, Direction]:
    draw = torch.Generator().manual_seed(0)

    def vector() -> torch.Tensor:
        return torch.randn(D_MODEL, generator=draw)

    found = {name: Direction(vector()) for name in "abc"}
    found["near a"] = Direction(found["a"].vector + 1e-3 * vector())
    found["-2a"] = Direction(-2 * found["a"].vector)
    found["l"] = Direction(vector(), vector(), bias=0.5)
    found["m"] = Direction(vector(), vector(), bias=0.2, threshold=0.3, norm_rescaled=True)
    found["along a"] = Direction(found["a"].vector, vector(), bias=3.0)
    return found


DIRECTIONS = make_directions()
PACKED = {name: pack(direction) for name, direction in DIRECTIONS.items()}


def steer(
    name: str,
    operation: str = "add",
    strength: float = 0.0,
    positions: Positions = "all",
    low: float = 0.0,
) -> Steering:
    return Steering(0, name, operation, strength, positions, low)


def value(direction: Direction, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A latent's f, and its unit."""
    assert direction.encoder is not None
    unit = x.norm() / D_MODEL**0.5 if direction.norm_rescaled else torch.ones((), dtype=x.dtype)
    p = x @ direction.encoder.double() / unit + direction.bias
    return (p if p > direction.threshold else torch.zeros_like(p)), unit


def expected(steering: list[Steering], x: torch.Tensor) -> torch.Tensor:
    """The definition: what latents contribute is set, all projections take their span out, then additions."""
    after = x.clone()
    setting = {one.direction: one for one in steering if one.does.needs_latent}
    for name, own in setting.items():
        f, unit = value(DIRECTIONS[str(name)], x)
        target = 0.0 if own.operation == "clamp_firing" and not f else own.strength
        if own.operation == "clamp_interval":
            target = min(max(float(f), own.low), own.strength)
        after += (target - f) * unit * DIRECTIONS[str(name)].vector.double()
    removed = [DIRECTIONS[str(one.direction)].vector for one in steering if one.operation == "project"]
    if removed:
        span = torch.linalg.svd(torch.stack(removed).double(), full_matrices=False)
        basis = span.Vh[span.S / span.S[0] > 1e-5]
        after -= basis.T @ (basis @ after)
    for one in steering:
        if one.operation == "add":
            d = DIRECTIONS[str(one.direction)]
            after += one.strength * (d.vector if d.encoder is None else d.vector / d.vector.norm()).double()
    return after


def run(steering: list[Steering], hidden: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """The stream of a whole sequence after the operation, and what changed each position."""
    state = ResidualState(range(1), D_MODEL, 8, torch.device("cpu"))
    ready = {**to_json(steering, None), "report": True, "shard": None, "directions": PACKED}
    state.add("r", N_PROMPT, {"morfi": ready})
    state.begin(["r"], [0], [len(hidden)])
    after = hidden.clone()
    state.apply(0, after, torch.zeros_like(hidden))
    state.end(torch.arange(len(hidden)))
    changed = array("H", state.standing(state.live["r"]).changed).tolist()
    return after, changed + [0] * (len(hidden) - len(changed))


def active(steering: list[Steering], position: int) -> list[Steering]:
    return [
        one
        for one in steering
        if any(
            start <= position and (stop is None or position < stop)
            for start, stop in spans(one.positions, N_PROMPT)
        )
    ]


steerings = st.lists(
    st.builds(
        lambda name, operation, strength, place, width: steer(
            "l" if OPERATIONS[operation].needs_latent and name not in ("l", "m") else name,
            operation,
            0.0 if OPERATIONS[operation].amount is None else strength,
            place,
            strength - width if OPERATIONS[operation].has_low else 0.0,
        ),
        st.sampled_from(["a", "b", "c", "near a", "-2a", "l", "m"]),
        st.sampled_from(list(OPERATIONS)),
        st.sampled_from([-2.0, 0.5, 0.5, 3.0]),
        st.sampled_from(PLACES),
        st.sampled_from([0.0, 0.5, 3.0]),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(steerings, st.integers(0, 1000))
def test_together_they_are_as_defined_or_refused(steering: list[Steering], seed: int) -> None:
    x = torch.randn(N_TOKENS, D_MODEL, generator=torch.Generator().manual_seed(seed))
    try:
        join(steering, PACKED, N_PROMPT)
    except InputError as refused:
        event(str(refused))  # what is refused has tests of its own
        return
    after, changed = run(steering, x)
    for position in range(N_TOKENS):
        here = active(steering, position)
        wanted = expected(here, x[position].double())
        torch.testing.assert_close(after[position].double(), wanted, rtol=1e-4, atol=1e-4)
        users = [steering.index(one) for one in here if one.operation == "project"]
        assert all(changed[position] >> number & 1 for number in users)
        assert changed[position] < UNFIT
        assert bool(changed[position]) == bool((after[position] != x[position]).any())


@pytest.mark.parametrize("names", [["a", "b", "c"], ["a", "near a"], ["a", "-2a"], ["a", "a"]])
def test_nothing_is_left_along_any_projected_direction(names: list[str]) -> None:
    x = torch.randn(N_TOKENS, D_MODEL, generator=torch.Generator().manual_seed(1))
    after, _ = run([steer(name, "project") for name in names], x)
    for name in names:
        d = DIRECTIONS[name].vector
        assert (after @ d).abs().max() < 1e-5 * (x @ d).abs().max()


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_alone_each_operation_is_itself(operation: Operation) -> None:
    strength = 0.0 if operation.amount is None else 1.5
    joint = join([steer("l", operation.name, strength)], PACKED, N_PROMPT)
    assert [(one.operation, one.strength) for one in joint.entries] == [(operation, strength)]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_latent_named_twice_is_one(operation: str) -> None:
    x = torch.randn(N_TOKENS, D_MODEL, generator=torch.Generator().manual_seed(2))
    strength = 0.0 if OPERATIONS[operation].amount is None else 1.5
    once = run([steer("l", operation, 2 * strength if operation == "add" else strength)], x)
    twice = run([steer("l", operation, strength)] * 2, x)
    assert torch.equal(once[0], twice[0])
    assert twice[1] == [3 if mask else 0 for mask in once[1]]
    other_name = {**PACKED, "again": PACKED["l"]}
    joint = join([steer("l", operation, strength), steer("again", operation, strength)], other_name, N_PROMPT)
    assert [entry.users for entry in joint.entries] == [3]


def test_what_a_projection_takes_an_ablation_does_not_bring_back() -> None:
    x = torch.randn(N_TOKENS, D_MODEL, generator=torch.Generator().manual_seed(3))
    after, _ = run([steer("l", "ablate"), steer("a", "project")], x)
    assert (after @ DIRECTIONS["a"].vector).abs().max() < 1e-4
    in_span, changed = run([steer("along a", "ablate"), steer("a", "project")], x)
    torch.testing.assert_close(in_span, run([steer("a", "project")], x)[0])
    assert set(changed) == {3}


@pytest.mark.parametrize(
    ("steering", "message"),
    [
        ([steer("l", "clamp", 2.0), steer("l", "clamp", 3.0)], "the values 2 and 3 at one position"),
        ([steer("l", "clamp", 2.0), steer("l", "ablate", positions=(1,))], "the values 0 and 2"),
        ([steer("l", "clamp", 2.0), steer("l", "clamp_firing", 2.0)], "the values 2 and 2 where it fires"),
        ([steer("along a", "clamp", 2.0), steer("-2a", "project")], "is projected out"),
        ([steer("along a", "clamp_firing", 2.0), steer("-2a", "project")], "is projected out"),
        ([steer("l", "clamp_interval", 2.0), steer("l", "clamp_interval", 3.0)], "0 to 2 and 0 to 3 at one"),
        ([steer("l", "clamp_interval", 2.0), steer("l", "clamp", 2.0)], "(0 to 2 and 2|2 and 0 to 2) at one"),
        ([steer("along a", "clamp_interval", 2.0, low=1.0), steer("a", "project")], "is projected out"),
        (  # at each of 16 positions another combination
            [
                steer(name, "project", positions=tuple(p for p in range(16) if p >> number & 1))
                for number, name in enumerate("abcl")
            ],
            "give the projections the same positions",
        ),
    ],
)
def test_contradictions_are_refused(steering: list[Steering], message: str) -> None:
    with pytest.raises(InputError, match=message):
        join(steering, PACKED, N_PROMPT)


def test_set_to_0_where_it_fires_a_latent_is_ablated() -> None:
    joint = join([steer("l", "clamp_firing"), steer("l", "ablate"), steer("l", "clamp")], PACKED, N_PROMPT)
    assert [(one.operation.name, one.users) for one in joint.entries] == [("ablate", 7)]


def test_an_interval_of_one_value_is_a_clamp() -> None:
    both = [steer("l", "clamp_interval", 2.0, low=2.0), steer("l", "clamp", 2.0)]
    assert [(one.operation.name, one.users) for one in join(both, PACKED, N_PROMPT).entries] == [("clamp", 3)]
    nothing = [steer("l", "clamp_interval"), steer("l", "ablate")]
    assert [one.operation.name for one in join(nothing, PACKED, N_PROMPT).entries] == ["ablate"]


def test_within_its_interval_a_latent_changes_no_bit() -> None:
    x = torch.randn(200, D_MODEL, generator=torch.Generator().manual_seed(4))
    x[:, 0] = -0.0
    f = torch.tensor([float(value(DIRECTIONS["l"], row.double())[0]) for row in x])
    after, changed = run([steer("l", "clamp_interval", 2.0, low=0.5)], x)
    is_within = (f >= 0.5) & (f <= 2.0)
    assert is_within.sum() > 20
    assert torch.equal(after[is_within].view(torch.int32), x[is_within].view(torch.int32))
    assert [not one for one in changed] == is_within.tolist()
    moved = (f.clamp(0.5, 2.0) - f)[:, None] * DIRECTIONS["l"].vector
    torch.testing.assert_close(after, x + moved, rtol=1e-4, atol=1e-4)


def test_below_its_interval_a_projected_latent_is_no_contradiction() -> None:
    x = torch.randn(N_TOKENS, D_MODEL, generator=torch.Generator().manual_seed(5))
    together = [steer("along a", "clamp_interval", 2.0), steer("a", "project")]
    torch.testing.assert_close(run(together, x)[0], run([steer("a", "project")], x)[0])


def test_other_values_at_other_positions_are_no_contradiction() -> None:
    joint = join(
        [steer("l", "clamp", 2.0, "generated"), steer("l", "ablate", positions="prompt")], PACKED, N_PROMPT
    )
    assert sorted((entry.strength, tuple(entry.spans)) for entry in joint.entries) == [
        (0.0, ((0, N_PROMPT),)),
        (2.0, ((N_PROMPT, None),)),
    ]


def test_additions_that_cancel_change_nothing() -> None:
    x = torch.randn(N_TOKENS, D_MODEL)
    after, changed = run([steer("a", strength=1.0), steer("a", strength=-1.0)], x)
    assert torch.equal(after, x)
    assert not any(changed)


def check(joint: Joint, dtype: str) -> None:
    for parts in put_in_together(joint):
        check_amounts(parts, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_added_together_is_bounded(dtype: str) -> None:
    d = DIRECTIONS["a"].vector
    most = 32752 / float(d.abs().max()) if dtype == "float16" else 1e18 / float(d.norm())
    half = 0.51 * most
    for fine in (
        [steer("a", strength=0.99 * most)],
        [steer("a", strength=half), steer("a", strength=-most)],
        [steer("a", strength=half, positions="prompt"), steer("a", strength=half, positions="generated")],
        [steer("a", "project"), steer("a", strength=half)],
        [steer("l", "clamp_interval", 2 * most)],  # nothing larger comes in than there was
    ):
        check(join(fine, PACKED, N_PROMPT), dtype)
    for bad in (
        [steer("a", strength=1.01 * most)],
        [steer("a", strength=half), steer("a", strength=half, positions="last_prompt")],
        [steer("a", strength=half), steer("-2a", strength=-half / 2)],
        [steer("l", "clamp", 2 * most * float(d.norm()))],
        [steer("l", "clamp_interval", large := 2 * most * float(d.norm()), low=large)],
        [steer("l", "clamp_interval", -large, low=-2 * large)],
    ):
        with pytest.raises(InputError, match=rf"after layer 0 would move .* more than {dtype}"):
            check(join(bad, PACKED, N_PROMPT), dtype)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([("a", "add"), ("m", "add"), ("l", "clamp"), ("m", "clamp")]),
    st.sampled_from([*range(12, 27), 38]),
    st.integers(-6, 4),
    st.integers(0, 1000),
)
def test_what_is_refused_would_move_the_stream_too_far(
    what: tuple[str, str], digits: int, norm_digits: int, seed: int
) -> None:
    drawn = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(seed))
    x = drawn * (10.0**norm_digits / drawn.norm())
    steering = [steer(*what, 10.0**digits)]
    moved = float((expected(steering, x.double()) - x.double()).norm())
    assume(not 0.99e18 < moved < 1.01e18)
    try:
        check(join(steering, PACKED, N_PROMPT), "float32")
    except InputError:
        assert moved > 1e18
        return
    after, changed = run(steering, x.repeat(N_TOKENS, 1))
    assert bool(after.isnan().all()) == (moved > 1e18)
    assert all(one >= UNFIT for one in changed) == (moved > 1e18)
    assert what == ("m", "clamp") or moved < 1e18


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_stream_that_does_not_fit_is_nan_and_noted(dtype: torch.dtype) -> None:
    strength = 3e4 if dtype == torch.float16 else 1e19
    hidden = torch.ones(2, D_MODEL, dtype=dtype)
    rest = torch.full((2, D_MODEL), 4e4, dtype=dtype)
    state = ResidualState(range(1), D_MODEL, 8, torch.device("cpu"))
    one = Direction(torch.ones(D_MODEL))
    plain = to_json([Steering(0, "x", strength=strength, positions=(1,))], None)
    ready = {**plain, "report": True, "shard": None, "directions": {"x": pack(one)}}
    state.add("r", 2, {"morfi": ready})
    state.begin(["r"], [0], [2])
    state.apply(0, hidden, rest)
    state.end(torch.arange(2))
    assert torch.equal(hidden[0], torch.ones(D_MODEL, dtype=dtype))
    assert hidden[1].isnan().all()
    assert array("H", state.standing(state.live["r"]).changed).tolist() == [0, UNFIT + 1]


def test_three_projections_at_any_positions_fit_into_the_bank() -> None:
    draw = random.Random(0)
    for _ in range(50):
        steering = [steer(draw.choice("abc"), "project", positions=draw.choice(PLACES)) for _ in range(3)]
        joint = join(steering, PACKED, N_PROMPT)
        for entry in joint.entries:
            assert entry.operation == PROJECT
            assert unpack(joint.directions[entry.direction]).vector.shape == (D_MODEL,)
            assert all(stop is None or start < stop for start, stop in entry.spans)
