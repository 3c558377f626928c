"""Steering and capture in vLLM equal transformers with forward hooks."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from hooked_model import ALWAYS, D_MODEL, ON_CPU, PREFIX, Served, check_mixed_batch, draw_prompts, state_of

from morfi.engine.directions import Direction, SaeLatents
from morfi.engine.operations import OPERATIONS
from morfi.engine.protocol import Sampling
from morfi.engine.steering import Capture, Latent, Steering
from morfi.errors import InputError
from morfi.serve.plugin.shared_layers import Plan

PROMPT = PREFIX[:9]


@pytest.mark.parametrize("served", ALWAYS, indirect=True)
def test_a_mixed_batch_equals_hooks(served: Served) -> None:
    check_mixed_batch(served, seed=1, n_tokens=6)


@pytest.mark.parametrize("served", ON_CPU, indirect=True)
@pytest.mark.parametrize("layers", [(1,), (1, 1, 1, 0)])
def test_equal_prompts_share_the_layers_below_and_equal_hooks(
    served: Served, layers: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = state_of(served.engine).shared_layers
    assert shared is not None
    left_out, begin = [], shared.begin

    def count(plan: Plan | None) -> None:
        if plan is not None:
            kind = "answer" if len(plan.rows) == len(plan.requests) else "prompt"
            left_out.append((plan.last, kind, len(plan.places) - len(plan.rows)))
        begin(plan)

    monkeypatch.setattr(shared, "begin", count)
    draw = random.Random(3)
    prompts = [draw.choice(some) for some in [draw_prompts(draw, 5)] for _ in range(64)]
    check_mixed_batch(served, seed=4, n_tokens=6, prompts=prompts, layers=layers)
    assert min(layers) in {last for last, *_ in left_out}
    assert {kind for _, kind, _ in left_out} == {"answer", "prompt"}
    assert sum(n for _, _, n in left_out) > sum(map(len, prompts)) / 2


def test_strength_0_changes_no_bit(served: Served) -> None:
    prompts = [[*PROMPT, n] for n in range(3, 8)]
    everything = Capture((0, 1), "all")
    plain = served.engine.generate(prompts, Sampling(max_tokens=4), capture=everything)
    nothing = [[Steering(0, served.names[0]), Steering(1, served.names[2])]] * len(prompts)
    as_if = served.engine.generate(prompts, Sampling(max_tokens=4), capture=everything, steering=nothing)
    for (a,), (b,) in zip(plain, as_if, strict=True):
        assert a.token_ids == b.token_ids
        assert [one.n_tokens for one in b.applied] == [0, 0]
        assert all(torch.equal(x.values, y.values) for x, y in zip(a.captured, b.captured, strict=True))


def test_two_directions_equal_their_sum(served: Served) -> None:
    first, second = (served.directions[name].vector for name in served.names[:2])
    total = served.engine.register(Direction(2 * first - second))
    both = [Steering(0, served.names[0], strength=2.0), Steering(0, served.names[1], strength=-1.0)]
    capture = Capture((0, 1), "all")
    (two,), (one,) = served.engine.generate(
        [PROMPT, PROMPT],
        Sampling(max_tokens=4),
        steering=[both, [Steering(0, total, strength=1.0)]],
        capture=capture,
    )
    assert two.token_ids == one.token_ids
    for a, b in zip(two.captured, one.captured, strict=True):
        torch.testing.assert_close(a.values, b.values, rtol=1e-4, atol=1e-4)
    served.engine.release(total)
    with pytest.raises(InputError, match="is registered"):
        served.engine.generate([PROMPT], Sampling(), steering=[[Steering(0, total)]])


def test_latents_of_a_registered_sae(served: Served) -> None:
    draw = torch.Generator().manual_seed(5)
    sae = SaeLatents(
        torch.randn(20, D_MODEL, generator=draw),
        torch.randn(20, D_MODEL, generator=draw) * 0.3,
        torch.randn(20, generator=draw),
        torch.rand(20, generator=draw),
    )
    engine = served.engine
    name, alone = engine.register(sae), engine.register(sae.direction(7))
    sampling, everything = Sampling(max_tokens=4), Capture((0, 1), "all")
    for operation in OPERATIONS:
        strength = 0.0 if OPERATIONS[operation].amount is None else 1.5
        by_number = [Steering(0, Latent(name, 7), operation, strength)]
        by_content = [Steering(0, alone, operation, strength)]
        (a,), (b,) = engine.generate(
            [PROMPT] * 2, sampling, steering=[by_number, by_content], capture=everything
        )
        assert a.applied[0].steering.direction == Latent(name, 7)
        assert a.token_ids == b.token_ids
        for one, other in zip(a.captured, b.captured, strict=True):
            assert torch.equal(one.values, other.values)
    with pytest.raises(InputError, match="latent 20: the SAE has the latents 0 to 19"):
        engine.generate([PROMPT], sampling, steering=[[Steering(0, Latent(name, 20))]])
    with pytest.raises(InputError, match=r"no direction .* is registered"):
        engine.generate([PROMPT], sampling, steering=[[Steering(0, name)]])
    engine.release(name)
    engine.release(alone)
    with pytest.raises(InputError, match=r"no SAE .* is registered"):
        engine.generate([PROMPT], sampling, steering=[[Steering(0, Latent(name, 7))]])
