"""Steering in transformers with forward hooks, in float32, which steering and capture in vLLM must equal."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_path import AS_ON_A_GPU, EngineElsewhere, Ways
from transformers import AutoModelForCausalLM

from morfi.engine.directions import Direction
from morfi.engine.operations import OPERATIONS
from morfi.engine.protocol import Completion, Sampling
from morfi.engine.steering import Capture, Steering, n_positions, spans
from morfi.serve.engine import Engine
from morfi.serve.plugin.step import ResidualState
from morfi.verification.reference import reference_of

# vLLM's attention on CPUs approximates the soft cap's tanh, which changes residuals by some 1e-3.
FAMILIES = {"llama": "llama", "mistral": "mistral", "gemma2": "gemma2 without a cap"}
# What is served and how: as on this CPU, by vLLM's runner V1, and as on a GPU.
ON_CPU = [pytest.param((base, None), id=name) for name, base in FAMILIES.items()]
ON_GPU = pytest.param(("llama", AS_ON_A_GPU), id="llama as on a GPU", marks=pytest.mark.slow)
ALWAYS = [*ON_CPU, pytest.param(*ON_GPU.values, id=ON_GPU.id)]  # where it is quick
D_MODEL = 64
PREFIX = list(range(3, 67))  # two blocks of the CPU's prefix cache


@dataclass
class Served:
    """An engine, the same model in transformers, and directions by name."""

    engine: Engine
    reference: Any
    directions: dict[str, Direction]
    names: list[str]
    ways: Ways | None = None  # None: as on this CPU

    def latents(self) -> list[str]:
        return latents_of(self.directions)


def latents_of(directions: Mapping[str, Direction]) -> list[str]:
    return [name for name, direction in directions.items() if direction.encoder is not None]


def make_directions(seed: int) -> list[Direction]:
    draw = torch.Generator().manual_seed(seed)

    def vector() -> torch.Tensor:
        return torch.randn(D_MODEL, generator=draw)

    return [
        Direction(vector()),
        Direction(vector() * 3),
        Direction(vector(), vector() * 0.3, bias=0.5),
        Direction(vector(), vector() * 0.3, bias=-0.2, threshold=0.4),
        Direction(vector(), vector() * 0.3, bias=0.3, norm_rescaled=True),
    ]


@contextmanager
def serving(base: Path, ways: Ways | None = None, **overrides: Any) -> Iterator[Served]:
    """The model in `base`, with five directions registered; in another process where `ways` are given."""
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    start = Engine if ways is None else functools.partial(EngineElsewhere, ways=ways)
    with start(base, dtype="float32", context=256, overrides=overrides) as engine:
        directions = {engine.register(direction): direction for direction in make_directions(0)}
        yield Served(engine, reference, directions, list(directions), ways)


def by_hooks(
    served: Served,
    prompt: Sequence[int],
    steering: Sequence[Steering],
    n_tokens: int,
    n_changed: dict[int, int] | None = None,
) -> tuple[list[int], Sequence[torch.Tensor], Sequence[torch.Tensor]]:
    """Greedy tokens with hooks in transformers, and each layer's residual stream after and before them.

    `n_changed` takes, for each steering, the number of positions that it changes.
    """
    reference = reference_of(served.reference)
    tokens = list(prompt)
    stop_ids = set(served.engine._newline_ids) | {1}
    while True:
        streams = reference.run(tokens, len(prompt), steering, served.directions)
        tokens.append(int(streams.logits[-1].argmax()))
        if len(tokens) == len(prompt) + n_tokens or tokens[-1] in stop_ids:
            break
    if n_changed is not None:
        n_changed |= dict(enumerate(streams.n_changed))
    return tokens[len(prompt) :], streams.after, streams.before


def draw_steering(
    directions: Mapping[str, Direction], draw: random.Random, n_prompt: int, layers: Sequence[int] = (0, 1)
) -> list[Steering]:
    found: list[Steering] = []
    for _ in range(draw.choice((0, 1, 1, 2, 4))):
        operation = draw.choice(("add", *OPERATIONS))
        names = latents_of(directions) if OPERATIONS[operation].needs_latent else list(directions)
        # One latent has one value, and none along what is projected out.
        taken = {one.direction for one in found if "add" not in (operation, one.operation)}
        names = [name for name in names if name not in taken]
        if not names:
            continue
        strength = 0.0 if OPERATIONS[operation].amount is None else draw.uniform(-2, 2)
        positions: Any = draw.choice(
            ("all", "prompt", "generated", "last_prompt", (-1, -2), (0, (2, max(3, n_prompt))), ((-3, None),))
        )
        low = strength - draw.choice((0, 0.3, 2)) if OPERATIONS[operation].has_low else 0.0
        layer, name = draw.choice(layers), draw.choice(names)
        found.append(Steering(layer, name, operation, strength, positions, low))
    return found


def check_captured(
    completion: Completion, capture: Capture, prompt: Sequence[int], streams: Sequence[torch.Tensor]
) -> None:
    n_computed = len(prompt) + len(completion.token_ids) - 1
    tokens = [*prompt, *completion.token_ids]
    assert [found.layer for found in completion.captured] == list(capture.layers)
    for found in completion.captured:
        wanted = [
            place
            for start, stop in spans(capture.positions, len(prompt))
            for place in range(start, n_computed if stop is None else min(stop, n_computed))
        ]
        assert list(found.positions) == wanted
        assert list(found.token_ids) == [tokens[place] for place in wanted]
        expected = streams[found.layer][wanted]
        assert found.values.shape == expected.shape
        if not wanted:
            continue
        assert (found.values - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))
        cosines = torch.nn.functional.cosine_similarity(found.values, expected)
        assert cosines.min() > 0.999999


def state_of(engine: Engine) -> ResidualState:
    state: ResidualState = engine._llm.llm_engine.model_executor.driver_worker.model_runner.morfi_state
    return state


def draw_prompts(draw: random.Random, n: int) -> list[list[int]]:
    return [
        (PREFIX if draw.random() < 0.5 else [])
        + [draw.randrange(3, 200) for _ in range(draw.randrange(2, 9))]
        for _ in range(n)
    ]


def check_mixed_batch(
    served: Served,
    *,
    seed: int,
    n_tokens: int,
    prompts: Sequence[list[int]] = (),
    layers: Sequence[int] = (0, 1),
) -> None:
    draw = random.Random(seed)
    # Interpreted kernels take some 10 ms for a token.
    prompts = prompts or draw_prompts(draw, 64 if served.ways is None else 12)
    steering = [draw_steering(served.directions, draw, len(prompt), layers) for prompt in prompts]
    captured = [
        None,
        Capture((1,)),
        Capture((0, 1), "all"),
        Capture((1, 0), "generated"),
        Capture((0,), before=True),
    ]
    fit = [one for one in captured if one is None or set(one.layers) <= set(layers)]
    captures = [draw.choice(fit) for _ in prompts]
    served.engine.reset_prefix_cache()
    completions = served.engine.generate(
        prompts, Sampling(max_tokens=n_tokens), steering=steering, capture=captures
    )
    for prompt, wanted, capture, (completion,) in zip(prompts, steering, captures, completions, strict=True):
        n_changed: dict[int, int] = {}
        tokens, after, before = by_hooks(served, prompt, wanted, n_tokens, n_changed)
        assert list(completion.token_ids) == tokens
        n_computed = len(prompt) + len(tokens) - 1
        assert [one.steering for one in completion.applied] == wanted
        for number, one in enumerate(completion.applied):
            assert one.n_tokens == n_changed[number]
            assert one.n_tokens <= n_positions(one.steering.positions, len(prompt), n_computed)
        if capture is None:
            assert completion.captured == ()
        else:
            check_captured(completion, capture, prompt, before if capture.before else after)
