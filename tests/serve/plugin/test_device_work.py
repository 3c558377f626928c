"""The tables that a GPU's kernel reads say the same as the work that a CPU does in torch."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
import torch

from morfi.engine.directions import Direction, pack
from morfi.engine.operations import OPERATIONS
from morfi.engine.steering import Capture, Steering, to_json
from morfi.errors import InputError, MorfiError
from morfi.kernels.residual import residual_reference
from morfi.serve.plugin.device_work import DeviceWork
from morfi.serve.plugin.joint import join
from morfi.serve.plugin.step import ResidualState
from morfi.serve.plugin.steps import Steps

D_MODEL, N_LAYERS, N_TOKENS = 16, 3, 64
CPU = torch.device("cpu")


def make_state(device_work: DeviceWork | None) -> ResidualState:
    return ResidualState(range(N_LAYERS), D_MODEL, 32, CPU, device_work)


def draw_steering(draw: random.Random, packed: dict[str, bytes], n_prompt: int) -> list[Steering]:
    """Steerings that do not contradict each other."""
    while True:
        found = [
            Steering(
                draw.randrange(N_LAYERS),
                draw.choice(list(packed)),
                operation := draw.choice(list(OPERATIONS)),
                0.0 if OPERATIONS[operation].amount is None else draw.uniform(-2, 2),
                draw.choice(("all", "prompt", "generated", (-1, 0))),
                -2.0 if OPERATIONS[operation].has_low else 0.0,
            )
            for _ in range(draw.randrange(6))
        ]
        with contextlib.suppress(InputError):
            join(found, packed, n_prompt)
            return found


def draw_requests(
    draw: random.Random, directions: list[Direction]
) -> dict[str, tuple[int, dict[str, object]]]:
    """Requests by id: tokens of the prompt, and the specification made ready."""
    packed = {direction.sha256: pack(direction) for direction in directions}
    found: dict[str, tuple[int, dict[str, object]]] = {}
    for number in range(5):
        n_prompt = draw.randrange(2, 7)
        steering = draw_steering(draw, packed, n_prompt)
        capture = draw.choice((None, Capture((2, 0), "all"), Capture((1,), "all", before=True)))
        ready = {**to_json(steering, capture), "report": True, "shard": None, "directions": packed}
        found[f"r{number}"] = (n_prompt, {"morfi": ready})
    return found


@pytest.mark.parametrize("seed", range(5))
def test_tables_and_torch_do_the_same(seed: int) -> None:
    draw, torch_draw = random.Random(seed), torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch_draw)

    directions = [Direction(tensor(D_MODEL), tensor(D_MODEL), 0.3, norm_rescaled=n == 1) for n in range(3)]
    states = [make_state(None), make_state(DeviceWork(N_LAYERS, N_TOKENS, D_MODEL, CPU, residual_reference))]
    requests = draw_requests(draw, directions)
    for state in states:
        for request_id, (n_prompt, extra_args) in requests.items():
            state.add(request_id, n_prompt, extra_args)
    starts = dict.fromkeys(requests, 0)
    for step in range(4):
        counts = [n_prompt if step == 0 else 1 for n_prompt, _ in requests.values()]
        streams = [(tensor(sum(counts), D_MODEL), tensor(sum(counts), D_MODEL)) for _ in range(N_LAYERS)]
        results = []
        for state in states:
            state.begin(list(requests), list(starts.values()), counts)
            steered = []
            for layer, (hidden, residual) in enumerate(streams):
                steered.append(hidden.clone())
                state.apply(layer, steered[-1], residual)
            state.end(torch.arange(sum(counts)))
            results.append(steered)
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs)
        starts = {name: start + count for (name, start), count in zip(starts.items(), counts, strict=True)}
    names = list(requests)
    n_compared = 0
    for one, other in zip(*(state.take(names) for state in states), strict=True):
        assert one is not None
        assert other is not None
        assert states[1].unproven(other) is None
        standing = states[0].standing(one)
        assert standing == states[1].standing(other)
        assert any(standing.changed) or not one.entries
        assert one.n_captured == other.n_captured
        assert set(one.captured) == set(other.captured)
        for layer, parts in one.captured.items():
            for mine, its in zip(parts, other.captured[layer], strict=True):
                assert (mine.positions, mine.token_ids) == (its.positions, its.token_ids)
                torch.testing.assert_close(mine.values, its.values)
                n_compared += len(mine.positions)
    assert n_compared


def steered(kernel: Any, *, capture: Capture | None = None) -> ResidualState:
    """A state of tables that `kernel` reads, with one request, "a", steered after layer 1."""
    state = make_state(DeviceWork(N_LAYERS, N_TOKENS, D_MODEL, CPU, kernel))
    direction = Direction(torch.ones(D_MODEL))
    specification = to_json([Steering(1, direction.sha256, strength=1.0)], capture)
    packed = {direction.sha256: pack(direction)}
    state.add("a", 2, {"morfi": {**specification, "report": True, "shard": None, "directions": packed}})
    return state


def step(state: ResidualState, start: int, count: int) -> None:
    state.idle()
    state.begin(["a"], [start], [count])
    for layer in range(N_LAYERS):
        state.apply(layer, torch.zeros(count, D_MODEL), torch.zeros(count, D_MODEL))
    state.end(torch.arange(count))


def broken_after(n_calls: int) -> Any:
    """A kernel that runs `n_calls` times and never again, like a graph that lacks the operation."""
    left = [n_calls]

    def kernel(*args: Any) -> None:
        if left[0]:
            left[0] -= 1
            residual_reference(*args)

    return kernel


def test_a_graph_without_the_operation_is_found_out() -> None:
    state = steered(broken_after(N_LAYERS))
    step(state, 0, 2)
    (live,) = state.live.values()
    assert state.unproven(live) is None
    step(state, 2, 1)
    assert "layer 1 was to be steered" in str(state.unproven(live))
    for _ in range(2):
        with pytest.raises(MorfiError, match=r"layer 1 was to be steered .* did not run"):
            state.idle()


def test_rows_of_an_earlier_step_are_not_given_for_one_that_did_not_run() -> None:
    state = steered(broken_after(N_LAYERS), capture=Capture((1,), "all"))
    step(state, 0, 2)
    step(state, 2, 1)
    (live,) = state.live.values()
    assert "layer 1 was to be steered or captured, but" in str(state.unproven(live))
    assert live.n_captured == {1: 2}
    assert [rows.positions for rows in live.captured[1]] == [[0, 1]]


def test_positions_that_a_preempted_request_computes_again_are_not_captured_again() -> None:
    """They have no room among the captured rows of the step."""
    state = steered(residual_reference, capture=Capture((1,), "all"))
    assert state.device_work is not None
    step(state, 0, 2)
    assert state.device_work.tables.capture_rows[:2].tolist() == [0, 1]
    step(state, 0, 2)
    assert state.device_work.tables.capture_rows[:2].tolist() == [-1, -1]
    (live,) = state.live.values()
    assert live.n_captured == {1: 2}
    assert [rows.positions for rows in live.captured[1]] == [[0, 1]]


def test_a_step_that_did_not_come_to_its_end_proves_nothing() -> None:
    state = steered(residual_reference)
    state.begin(["a"], [0], [2])
    (live,) = state.live.values()
    assert "nothing says that step 1 did its work" in str(state.unproven(live))
    state.idle()
    with pytest.raises(MorfiError, match="step 1 was begun"):
        state.begin(["a"], [2], [1])


class Later:
    """An event of a GPU that is still busy: `query` is false until somebody waits for it."""

    waited = 0

    def __init__(self) -> None:
        self.has_come = False

    def query(self) -> bool:
        return self.has_come

    def synchronize(self) -> None:
        Later.waited += not self.has_come
        self.has_come = True


def test_only_who_needs_a_step_waits_for_it() -> None:
    ran = torch.zeros(N_LAYERS, dtype=torch.int32)
    steps = Steps(ran)

    def run(*, is_right: bool) -> Any:
        steps.begin([1])
        ran[1] = steps.mark if is_right else 0
        steps.end()
        event: Any = Later()
        steps._running[-1].marks._ready = event
        return event

    Later.waited = 0
    first, second, _ = run(is_right=True), run(is_right=True), run(is_right=False)
    steps.settle()
    assert (steps.proven, Later.waited) == (0, 0)
    steps.prove(0)
    first.has_come = True
    steps.prove(1)
    assert (steps.proven, Later.waited) == (1, 0)
    steps.prove(2)
    assert (steps.proven, second.has_come, Later.waited) == (2, True, 1)
    with pytest.raises(MorfiError, match="layer 1"):
        steps.prove(3)
    with pytest.raises(MorfiError, match="layer 1"):
        steps.prove(1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_tables_and_torch_do_the_same_while_requests_come_and_go(seed: int) -> None:
    """They end, are preempted, left out of steps, have many spans, and more directions than the bank."""
    draw, torch_draw = random.Random(seed), torch.Generator().manual_seed(seed)
    packed = {one.sha256: pack(one) for one in (Direction(torch.randn(D_MODEL)) for _ in range(40))}
    states = [make_state(None), make_state(DeviceWork(N_LAYERS, N_TOKENS, D_MODEL, CPU, residual_reference))]
    at: dict[str, int] = {}  # of those that have not ended, their next position
    for step in range(25):
        for number in range(draw.randrange(4)):
            name = f"{step}-{number}"
            spans = tuple(sorted(draw.sample(range(12), draw.randrange(1, 6))))
            own = dict(draw.sample(list(packed.items()), 4))
            asked = [Steering(draw.randrange(N_LAYERS), one, strength=1.0, positions=spans) for one in own]
            capture = draw.choice((None, Capture((1,), spans)))
            ready = {**to_json(asked, capture), "report": True, "shard": None, "directions": own}
            at[name] = 0
            for state in states:
                state.add(name, 3, {"morfi": ready})
        for name in draw.sample(list(at), len(at) // 4):
            if draw.random() < 0.5:
                at[name] = 0  # preempted
                continue
            del at[name]
            for state in states:
                state.finish(name)
        names = draw.sample(list(at), min(len(at), 6))
        counts = [draw.randrange(1, 4) for _ in names]
        stream = torch.randn(sum(counts), D_MODEL, generator=torch_draw)
        results = []
        for state in states:
            state.idle()
            state.begin(names, [at[name] for name in names], counts)
            for layer in range(N_LAYERS):
                results.append(stream.clone())
                state.apply(layer, results[-1], None)
            state.end(torch.arange(sum(counts)))
        for ours, theirs in zip(results[:N_LAYERS], results[N_LAYERS:], strict=True):
            torch.testing.assert_close(ours, theirs)
        at |= {name: at[name] + count for name, count in zip(names, counts, strict=True)}
    followed = [*states[0].live, *states[0].ended]
    assert [*states[1].live, *states[1].ended] == followed
    for one, other in zip(*(state.take(followed) for state in states), strict=True):
        assert one is not None
        assert other is not None
        assert states[1].unproven(other) is None
        assert states[0].standing(one) == states[1].standing(other)
        assert one.n_captured == other.n_captured
        for mine, its in zip(one.captured.get(1, []), other.captured.get(1, []), strict=True):
            assert mine.positions == its.positions
            torch.testing.assert_close(mine.values, its.values)
