"""Steering and capture in vLLM equal transformers with forward hooks, in float32, on tiny random models."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from morfi.checkpoints import resolve, resolve_unmerged
from morfi.engine.directions import Direction, SaeLatents
from morfi.engine.protocol import Completion, Sampling
from morfi.engine.shards import read_shards
from morfi.engine.steering import Capture, Latent, Steering, n_positions, spans, to_json
from morfi.errors import InputError, MorfiError
from morfi.serve.engine import Engine
from morfi.serve.plugin.shared_layers import Plan
from morfi.serve.plugin.step import ResidualState

D_MODEL = 64
PREFIX = list(range(3, 67))  # two blocks of the CPU's prefix cache
ARCHITECTURES = ("llama", "mistral", "gemma2")


@dataclass
class Served:
    """An engine, the same model in transformers, and directions by name."""

    engine: Engine
    reference: Any
    directions: dict[str, Direction]
    names: list[str]

    def latents(self) -> list[str]:
        return [name for name in self.names if self.directions[name].encoder is not None]


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


def without_cap(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    if "attn_logit_softcapping" in config:
        config["attn_logit_softcapping"] = None
        (base / "config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def served(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_base: Callable[[Path, str], Path],
    starts_vllm: None,
) -> Iterator[Served]:
    base = make_base(tmp_path_factory.mktemp("steered"), request.param)
    # vLLM's attention on CPUs approximates the soft cap's tanh, which changes residuals by some 1e-3.
    without_cap(base)
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with Engine(base, dtype="float32", context=256) as engine:
        directions = {engine.register(direction): direction for direction in make_directions(0)}
        yield Served(engine, reference, directions, list(directions))


def added(direction: Direction, strength: float) -> torch.Tensor:
    d = direction.vector
    return strength * (d if direction.encoder is None else d / d.norm())


def contribution(direction: Direction, target: float, x: torch.Tensor) -> torch.Tensor:
    """The change to the residual stream x [d_model] that sets a latent to `target`."""
    assert direction.encoder is not None
    unit = x.norm() / D_MODEL**0.5 if direction.norm_rescaled else torch.tensor(1.0)
    p = (x / unit) @ direction.encoder + direction.bias
    f = p if p > direction.threshold else torch.tensor(0.0)
    return (target - f) * unit * direction.vector


def steered(served: Served, active: Sequence[tuple[int, Steering]], x: torch.Tensor) -> dict[int, bool]:
    """Makes of x [d_model] what steerings, by number, do to it, as defined; says which change anything."""
    before, changes = x.clone(), {}
    named = [(number, one, served.directions[str(one.direction)]) for number, one in active]
    for number, one, direction in named:
        if one.operation in ("ablate", "clamp"):
            change = contribution(direction, one.strength, before)
            x += change
            changes[number] = bool(change.any())
    removed = [direction.vector for _, one, direction in named if one.operation == "project"]
    if removed:
        basis = torch.linalg.qr(torch.stack(removed, 1)).Q
        x -= basis @ (basis.T @ x)
    for number, one, direction in named:
        if one.operation == "add":
            x += added(direction, one.strength)
        if one.operation in ("add", "project"):
            changes[number] = one.operation == "project" or one.strength != 0
    return changes


def by_hooks(
    served: Served,
    prompt: Sequence[int],
    steering: Sequence[Steering],
    n_tokens: int,
    n_changed: dict[int, int] | None = None,
) -> tuple[list[int], list[torch.Tensor], list[torch.Tensor]]:
    """Greedy tokens with hooks in transformers, and each layer's residual stream after and before them.

    `n_changed` takes, for each steering, the number of positions that it changes.
    """
    n_changed = {} if n_changed is None else n_changed
    layers = served.reference.model.layers
    after: dict[int, torch.Tensor] = {}
    before: dict[int, torch.Tensor] = {}

    def hook(index: int) -> Callable[..., Any]:
        def steer(module: Any, inputs: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            before[index] = hidden[0].clone()
            result = hidden.clone()
            for number in [number for number, one in enumerate(steering) if one.layer == index]:
                n_changed[number] = 0
            for place in range(hidden.shape[1]):
                active = [
                    (number, one)
                    for number, one in enumerate(steering)
                    if one.layer == index and is_meant(one, place, len(prompt))
                ]
                for number, has_changed in steered(served, active, result[0, place]).items():
                    n_changed[number] += has_changed
            after[index] = result[0].clone()
            return (result, *output[1:]) if isinstance(output, tuple) else result

        return steer

    handles = [layer.register_forward_hook(hook(index)) for index, layer in enumerate(layers)]
    tokens = list(prompt)
    stop_ids = set(served.engine._newline_ids) | {1}
    try:
        with torch.no_grad():
            while True:
                logits = served.reference(torch.tensor([tokens]), use_cache=False).logits[0, -1]
                tokens.append(int(logits.argmax()))
                if len(tokens) == len(prompt) + n_tokens or tokens[-1] in stop_ids:
                    break
    finally:
        for handle in handles:
            handle.remove()
    n = len(layers)
    return tokens[len(prompt) :], [after[i] for i in range(n)], [before[i] for i in range(n)]


def is_meant(one: Steering, place: int, n_prompt: int) -> bool:
    return any(
        start <= place and (stop is None or place < stop) for start, stop in spans(one.positions, n_prompt)
    )


def draw_steering(
    served: Served, draw: random.Random, n_prompt: int, layers: Sequence[int] = (0, 1)
) -> list[Steering]:
    found: list[Steering] = []
    for _ in range(draw.choice((0, 1, 1, 2, 4))):
        operation = draw.choice(("add", "add", "ablate", "clamp", "project"))
        names = served.latents() if operation in ("ablate", "clamp") else served.names
        # One latent has one value, and none along what is projected out.
        taken = {one.direction for one in found if "add" not in (operation, one.operation)}
        names = [name for name in names if name not in taken]
        if not names:
            continue
        strength = draw.uniform(-2, 2) if operation in ("add", "clamp") else 0.0
        positions: Any = draw.choice(
            ("all", "prompt", "generated", "last_prompt", (-1, -2), (0, (2, n_prompt)), ((-3, None),))
        )
        found.append(Steering(draw.choice(layers), draw.choice(names), operation, strength, positions))
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


@pytest.fixture(scope="module")
def squeezed(
    tmp_path_factory: pytest.TempPathFactory, make_base: Callable[[Path, str], Path], starts_vllm: None
) -> Iterator[Served]:
    """An engine that computes prompts in parts and has too little memory for all requests of a batch."""
    base = make_base(tmp_path_factory.mktemp("squeezed"), "llama")
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    settings = {
        "enable_chunked_prefill": True,
        "max_num_batched_tokens": 40,
        "max_num_seqs": 16,
        "num_gpu_blocks_override": 24,
    }
    with Engine(base, dtype="float32", context=256, overrides=settings) as engine:
        directions = {engine.register(direction): direction for direction in make_directions(0)}
        yield Served(engine, reference, directions, list(directions))


def test_a_mixed_batch_equals_hooks(served: Served) -> None:
    check_mixed_batch(served, seed=1, n_tokens=6)


def test_prompts_in_parts_and_preempted_requests_equal_hooks(
    squeezed: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = squeezed.engine._llm.llm_engine.engine_core.engine_core.scheduler
    n_preempted, preempt = [], scheduler._preempt_request

    def count(*args: Any, **kwargs: Any) -> Any:
        n_preempted.append(1)
        return preempt(*args, **kwargs)

    monkeypatch.setattr(scheduler, "_preempt_request", count)
    check_mixed_batch(squeezed, seed=2, n_tokens=40)
    assert n_preempted


def draw_prompts(draw: random.Random, n: int) -> list[list[int]]:
    return [
        (PREFIX if draw.random() < 0.5 else [])
        + [draw.randrange(3, 200) for _ in range(draw.randrange(2, 9))]
        for _ in range(n)
    ]


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


def check_mixed_batch(
    served: Served,
    *,
    seed: int,
    n_tokens: int,
    prompts: Sequence[list[int]] = (),
    layers: Sequence[int] = (0, 1),
) -> None:
    draw = random.Random(seed)
    prompts = prompts or draw_prompts(draw, 64)
    steering = [draw_steering(served, draw, len(prompt), layers) for prompt in prompts]
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


def test_strength_0_changes_no_bit(served: Served) -> None:
    prompts = [[*PREFIX, n] for n in range(3, 8)]
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
        [PREFIX, PREFIX],
        Sampling(max_tokens=4),
        steering=[both, [Steering(0, total, strength=1.0)]],
        capture=capture,
    )
    assert two.token_ids == one.token_ids
    for a, b in zip(two.captured, one.captured, strict=True):
        torch.testing.assert_close(a.values, b.values, rtol=1e-4, atol=1e-4)
    served.engine.release(total)
    with pytest.raises(InputError, match="is registered"):
        served.engine.generate([PREFIX], Sampling(), steering=[[Steering(0, total)]])


@pytest.mark.parametrize("steered_first", [True, False])
def test_a_shared_prefix_is_never_taken_over(served: Served, steered_first: bool) -> None:
    """vLLM caches keys and values by token ids: a steered request must not leave its own to a plain one."""
    sampling = Sampling(max_tokens=6)
    prompt = [*PREFIX, *PREFIX[:8]]
    steering: dict[bool, list[list[Steering]]] = {
        True: [[Steering(0, served.names[1], strength=2.0)]],
        False: [[]],
    }
    cold = {}
    for is_steered, wanted in steering.items():
        served.engine.reset_prefix_cache()
        cold[is_steered] = served.engine.generate([prompt], sampling, steering=wanted)[0][0].token_ids
    assert cold[True] != cold[False]
    served.engine.reset_prefix_cache()
    for is_steered in (steered_first, not steered_first):
        (found,) = served.engine.generate([prompt], sampling, steering=steering[is_steered])[0]
        assert found.token_ids == cold[is_steered]
        assert found.n_cached_tokens == 0
    (again,) = served.engine.generate([prompt], sampling, steering=steering[True])[0]
    assert again.token_ids == cold[True]
    assert again.n_cached_tokens > 0
    assert again.applied[0].n_tokens == len(prompt) + len(again.token_ids) - 1


def test_each_of_several_samples_is_steered(served: Served) -> None:
    sampling = Sampling(max_tokens=5, n=3, temperature=1.0, seed=7)
    wanted = [Steering(1, served.names[0], strength=1.0)]
    (several,) = served.engine.generate([PREFIX], sampling, steering=[wanted], capture=Capture((1,), "all"))
    assert len(several) == 3
    for completion in several:
        n_computed = len(PREFIX) + len(completion.token_ids) - 1
        assert completion.applied[0].n_tokens == n_computed
        assert completion.captured[0].token_ids == (*PREFIX, *completion.token_ids)[:n_computed]


@pytest.mark.parametrize(
    ("steering", "message"),
    [
        (Steering(2, "LATENT"), "the model has the layers 0 to 1"),
        (Steering(0, "nothing"), "no direction 'nothing' is registered"),
        (Steering(0, "VECTOR", "clamp", 1.0), "clamp needs a latent with its encoder"),
    ],
)
def test_a_bad_specification_is_refused_before_any_request_runs(
    served: Served, steering: Steering, message: str
) -> None:
    names: dict[Any, Any] = {"LATENT": served.latents()[0], "VECTOR": served.names[0]}
    bad = Steering(
        steering.layer,
        names.get(steering.direction, steering.direction),
        steering.operation,
        steering.strength,
    )
    with pytest.raises(InputError, match=message):
        served.engine.generate([PREFIX, PREFIX], Sampling(), steering=[[], [bad]])
    assert not served.engine._llm.llm_engine.has_unfinished_requests()


def test_vllm_alone_takes_the_same_specification(served: Served) -> None:
    """Users of vLLM itself pass it in `extra_args`, directions as numbers; batchmates notice nothing."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    vector = served.directions[served.names[1]].vector
    entry = {"layer": 0, "direction": vector.tolist(), "strength": 2.0}
    prompt = [*PREFIX, 9]
    common = {"temperature": 0, "max_tokens": 6, "detokenize": False}
    params = [
        SamplingParams(**common, extra_args={"morfi": {"steering": [entry]}}),
        SamplingParams(**common),
    ]
    prompts = [{"prompt_token_ids": prompt}] * 2
    steered, plain = (
        list(output.outputs[0].token_ids)
        for output in served.engine._llm.generate(prompts, params, use_tqdm=False)
    )
    named = [Steering(0, served.names[1], strength=2.0)]
    ours = served.engine.generate([prompt, prompt], Sampling(max_tokens=6), steering=[named, []])
    n = [len(completions[0].token_ids) for completions in ours]
    assert steered[: n[0]] == list(ours[0][0].token_ids)
    assert plain[: n[1]] == list(ours[1][0].token_ids)
    assert steered != plain
    for broken in ({**entry, "layer": 9}, {**entry, "direction": [1.0]}, {**entry, "strenght": 1}):
        refused = SamplingParams(**common, extra_args={"morfi": {"steering": [broken]}})
        with pytest.raises(VLLMValidationError, match=r"layers 0 to 1|has 64|strength"):
            served.engine._llm.generate(prompts[:1], refused, use_tqdm=False)


def test_a_refused_request_changes_nothing_for_its_batchmates(served: Served) -> None:
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    core = served.engine._llm.llm_engine
    good = {
        "steering": [{"layer": 0, "direction": served.names[0], "strength": 1.0}],
        "capture": {"layers": [1], "positions": "all"},
        "report": True,
    }
    bad = {"steering": [{"layer": 0, "direction": served.names[0], "strength": float("nan")}]}

    def run(*, with_bad: bool) -> list[Any]:
        served.engine.reset_prefix_cache()
        own_ids = []
        for number, specification in enumerate((good, bad, good)):
            params = SamplingParams(temperature=0, max_tokens=4, extra_args={"morfi": specification})
            prompt = {"prompt_token_ids": [*PREFIX, 3 + number]}
            if specification is good:
                own_ids.append(core.add_request(f"mate-{number}", prompt, params))
            elif with_bad:
                with pytest.raises(VLLMValidationError, match="finite number"):
                    core.add_request("bad", prompt, params)
            core.step()
        while core.has_unfinished_requests():
            core.step()
        return list(core.collective_rpc("morfi_take_reports", args=(own_ids,)))

    alone, beside = run(with_bad=False), run(with_bad=True)
    assert alone == beside
    assert alone[0][0]["captured"]["1"][2]


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
    for operation, strength in (("add", 1.5), ("clamp", 2.0), ("ablate", 0.0), ("project", 0.0)):
        by_number = [Steering(0, Latent(name, 7), operation, strength)]
        by_content = [Steering(0, alone, operation, strength)]
        (a,), (b,) = engine.generate(
            [PREFIX] * 2, sampling, steering=[by_number, by_content], capture=everything
        )
        assert a.applied[0].steering.direction == Latent(name, 7)
        assert a.token_ids == b.token_ids
        for one, other in zip(a.captured, b.captured, strict=True):
            assert torch.equal(one.values, other.values)
    with pytest.raises(InputError, match="latent 20: the SAE has the latents 0 to 19"):
        engine.generate([PREFIX], sampling, steering=[[Steering(0, Latent(name, 20))]])
    with pytest.raises(InputError, match=r"no direction .* is registered"):
        engine.generate([PREFIX], sampling, steering=[[Steering(0, name)]])
    engine.release(name)
    engine.release(alone)
    with pytest.raises(InputError, match=r"no SAE .* is registered"):
        engine.generate([PREFIX], sampling, steering=[[Steering(0, Latent(name, 7))]])


def test_more_directions_than_rows_in_the_bank(squeezed: Served) -> None:
    """A bank of 16 x 8 rows, 300 requests with a direction each: rows are taken over, none by two at once."""
    engine, draw = squeezed.engine, torch.Generator().manual_seed(6)
    n_slots = state_of(engine).bank.n_slots
    assert n_slots == 128
    directions = [Direction(torch.randn(D_MODEL, generator=draw)) for _ in range(300)]
    names = [engine.register(direction) for direction in directions]
    found = engine.generate(
        [PREFIX[:5]] * 300,
        Sampling(max_tokens=1),
        steering=[[Steering(1, name, strength=3.0)] for name in names],
        capture=Capture((1,)),
    )
    (plain,) = engine.generate([PREFIX[:5]], Sampling(max_tokens=1), capture=Capture((1,)))
    for direction, (one,) in zip(directions, found, strict=True):
        change = one.captured[0].values[0] - plain[0].captured[0].values[0]
        torch.testing.assert_close(change, 3 * direction.vector, rtol=1e-4, atol=1e-4)
    for name in names:
        engine.release(name)
    assert state_of(engine).bank.n_used == n_slots


def test_the_step_in_which_a_batchmate_ends_and_each_part_of_a_prompt_are_steered(squeezed: Served) -> None:
    long = PREFIX + PREFIX[:40]  # computed in parts: 40 tokens fit in a step
    wanted = [Steering(0, squeezed.names[1], strength=1.0)]
    mates = [Sampling(max_tokens=n) for n in (12, 1, 2, 3)]
    capture = Capture((0, 1), "all")
    found = squeezed.engine.generate(
        [long, *[PREFIX[:3]] * 3], mates, steering=[wanted, [], [], []], capture=capture
    )
    tokens, after, _ = by_hooks(squeezed, long, wanted, 12)
    assert list(found[0][0].token_ids) == tokens
    check_captured(found[0][0], capture, long, after)


def test_a_seed_is_refused_where_a_prompt_may_be_computed_in_parts(squeezed: Served) -> None:
    seeded = Sampling(max_tokens=1, temperature=1.0, seed=5)
    with pytest.raises(InputError, match=r"a seed was given, and enable_chunked_prefill on a CPU"):
        squeezed.engine.generate([PREFIX], [seeded])
    for sampling in (Sampling(max_tokens=1, temperature=1.0), Sampling(max_tokens=1, seed=5)):
        assert squeezed.engine.generate([PREFIX], sampling)


def test_request_ids_that_begin_alike_are_kept_apart(served: Served) -> None:
    from vllm import SamplingParams

    core, names = served.engine._llm.llm_engine, served.names
    wanted = {"1": 1.0, "11": -2.0, "1-1": 0.5, "0_1": 3.0, "1_1": -1.0}
    own_ids = {}
    for request_id, strength in wanted.items():
        specification = {
            "steering": [{"layer": 1, "direction": names[0], "strength": strength}],
            "capture": {"layers": [1]},
            "report": True,
        }
        params = SamplingParams(temperature=1, seed=1, max_tokens=1, n=2, extra_args={"morfi": specification})
        own_ids[request_id] = core.add_request(request_id, {"prompt_token_ids": PREFIX[:6]}, params)
    while core.has_unfinished_requests():
        core.step()
    (plain,) = served.engine.generate([PREFIX[:6]], Sampling(max_tokens=1), capture=Capture((1,)))[0]
    for request_id, strength in wanted.items():
        children = [f"{number}_{own_ids[request_id]}" for number in range(2)]
        (reports,) = core.collective_rpc("morfi_take_reports", args=(children,))
        for report in reports:
            values = torch.frombuffer(bytearray(report["captured"]["1"][2]), dtype=torch.float32)
            change = values - plain.captured[0].values[0]
            expected = strength * served.directions[names[0]].vector
            torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-4)


def test_capture_to_shards_equals_capture_to_the_caller(served: Served, tmp_path: Path) -> None:
    engine, draw = served.engine, random.Random(8)
    prompts = [[draw.randrange(3, 200) for _ in range(draw.randrange(2, 60))] for _ in range(40)]
    steering = [draw_steering(served, draw, len(prompt)) for prompt in prompts]
    captures = [draw.choice((None, Capture((1,)), Capture((1, 0), "all"))) for _ in prompts]
    sampling = Sampling(max_tokens=20, n=2, temperature=1.0, seed=3)
    engine.reset_prefix_cache()
    given = engine.generate(prompts, sampling, steering=steering, capture=captures)
    engine.reset_prefix_cache()
    with engine.shards(tmp_path / "captured", shard_bytes=20_000):
        half = len(prompts) // 2
        written = []
        for part in (slice(0, half), slice(half, None)):
            written += engine.generate(
                prompts[part], sampling, steering=steering[part], capture=captures[part]
            )
    assert [[one.token_ids for one in each] for each in written] == [
        [one.token_ids for one in each] for each in given
    ]
    assert all(one.captured == () for each in written for one in each)
    rows: dict[tuple[int, int, int, int], tuple[int, torch.Tensor]] = {}
    for shard in read_shards(tmp_path / "captured"):
        labels = zip(shard.request, shard.sample, shard.position, shard.token_id, shard.values, strict=True)
        for request, sample, position, token_id, values in labels:
            key = (shard.layer, int(request), int(sample), int(position))
            assert key not in rows
            rows[key] = (int(token_id), values)
    expected = {
        (part.layer, request, sample, position): (token_id, values)
        for request, each in enumerate(given)
        for sample, one in enumerate(each)
        for part in one.captured
        for position, token_id, values in zip(part.positions, part.token_ids, part.values, strict=True)
    }
    assert rows.keys() == expected.keys()
    for key, (token_id, values) in expected.items():
        assert rows[key][0] == token_id
        torch.testing.assert_close(rows[key][1], values, rtol=1e-4, atol=1e-4)


def test_shards_that_cannot_be_written_fail_the_call_and_leave_nothing(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("morfi.engine.shards.write_tensors", full)

    def capture_all() -> None:
        with served.engine.shards(tmp_path / "captured", shard_bytes=1):
            for _ in range(20):
                served.engine.generate([PREFIX], Sampling(max_tokens=1), capture=Capture((0,)))

    with pytest.raises(MorfiError, match=r"cannot be written: No space left on device"):
        capture_all()
    assert list(tmp_path.iterdir()) == []
    assert served.engine.generate([PREFIX], Sampling(max_tokens=1), capture=Capture((0,)))[0][0].captured


def test_10000_random_requests_leave_nothing_behind(squeezed: Served) -> None:
    """Steered, captured, plain, refused and aborted ones, in too little memory for all at once."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    draw, core, state = random.Random(4), squeezed.engine._llm.llm_engine, state_of(squeezed.engine)
    n_done = {"ended": 0, "aborted": 0, "refused": 0}
    reported: list[str] = []
    refused_jointly: list[str] = []
    grown = []
    for number in range(10_000):
        prompt = [draw.randrange(3, 200) for _ in range(draw.randrange(2, 9))]
        steering = draw_steering(squeezed, draw, len(prompt))
        capture = draw.choice((None, Capture((1,)), Capture((0, 1), "all")))
        specification: dict[str, Any] = to_json(steering, capture)
        kind = draw.choice(("ended", "ended", "ended", "aborted", "refused"))
        if kind == "refused":
            specification["steering"] = [{"layer": 99, "direction": squeezed.names[0]}]
        is_reported = draw.random() < 0.3
        params = SamplingParams(
            temperature=1,
            max_tokens=draw.randrange(1, 4),
            n=draw.choice((1, 1, 1, 2)),
            detokenize=False,
            extra_args={"morfi": {**specification, "report": is_reported}},
        )
        n_done[kind] += 1
        try:
            own_id = core.add_request(f"leak-{number}", {"prompt_token_ids": prompt}, params)
        except VLLMValidationError as refused:
            if kind != "refused":
                # Projections at many combinations of positions may need more rows than a request has.
                refused_jointly.append(str(refused))
            continue
        if is_reported:
            reported += [own_id] if params.n == 1 else [f"{sample}_{own_id}" for sample in range(params.n)]
        if kind == "aborted":
            for _ in range(draw.randrange(3)):
                core.step()
            core.abort_request([f"leak-{number}"])
        if number % 100 == 99:
            while core.has_unfinished_requests():
                core.step()
            core.collective_rpc("morfi_take_reports", args=(reported,))
            reported = []
            grown.append(psutil.Process().memory_info().rss)
    squeezed.engine.generate([PREFIX], Sampling(max_tokens=1))  # workers hear in the next step who has ended
    assert min(n_done.values()) > 1000
    assert len(refused_jointly) < 100
    assert all("give the projections the same positions" in reason for reason in refused_jointly)
    assert (state.live, state.ended, state.work) == ({}, {}, {})
    assert state.bank.n_used <= state.bank.n_slots
    assert len(squeezed.engine._admission.registry) == len(squeezed.names)
    assert grown[-1] - grown[len(grown) // 2] < 20e6


# The tests below start engines of their own in this process. Ending one ends vLLM's process groups for
# all engines of the process, so these tests stay behind those that share an engine.


@pytest.mark.usefixtures("starts_vllm")
def test_another_checkpoint_is_steered_as_itself(
    tmp_path: Path, isolated: Path, make_base: Callable[[Path, str], Path], train: Callable[..., Path]
) -> None:
    """After a swap the directions are still there, and what was cached under the old weights is not used."""
    base = make_base(tmp_path / "base", "llama")
    adapter = train(tmp_path / "adapter", base)
    checkpoint = resolve_unmerged(str(adapter), base=resolve(str(base), dtype="float32"))
    found = []
    for live in (True, False):
        start = base if live else resolve(str(adapter), dtype="float32").model_dir
        with Engine(start, dtype="float32", context=256, sha256=checkpoint.base_sha256) as engine:
            name = engine.register(make_directions(0)[0])
            wanted = [Steering(0, name, strength=2.0)]
            if live:
                engine.generate([PREFIX], Sampling(max_tokens=6), steering=[wanted])  # cached, steered
                (before,) = engine.generate([PREFIX], Sampling(), capture=Capture((1,), "all"))[0]
                engine.load_checkpoint(checkpoint)
            for steering in (wanted, []):
                (again,) = engine.generate([PREFIX], Sampling(max_tokens=6), steering=[steering])[0]
                (one,) = engine.generate(
                    [PREFIX], Sampling(max_tokens=6), steering=[steering], capture=Capture((1,), "all")
                )[0]
                found.append((again.token_ids + one.token_ids, one.captured[0].values))
    assert not torch.equal(found[1][1][: len(PREFIX)], before.captured[0].values[: len(PREFIX)])
    for swapped, started in zip(found[:2], found[2:], strict=True):
        assert swapped[0] == started[0]
        assert torch.equal(swapped[1], started[1])


@pytest.mark.usefixtures("starts_vllm")
def test_smollm2_equals_hooks(smollm2_dir: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval()
    draw = torch.Generator().manual_seed(0)
    with Engine(smollm2_dir, dtype="float32", context=256) as engine:
        direction = Direction(torch.randn(576, generator=draw))
        name = engine.register(direction)
        served = Served(engine, reference, {name: direction}, [name])
        prompts = [
            engine._tokenizer.encode(text)
            for text in ("Q: Which country is Lyon in?\nA:", "The capital of Peru is", "Two and two make")
        ]
        steering = [
            [Steering(15, name, strength=4.0)],
            [Steering(10, name, strength=-3.0, positions="last_prompt"), Steering(25, name, "project")],
            [],
        ]
        capture = Capture((15, 25), "all")
        found = engine.generate(prompts, Sampling(max_tokens=8), steering=steering, capture=capture)
    for prompt, wanted, (one,) in zip(prompts, steering, found, strict=True):
        tokens, after, _ = by_hooks(served, prompt, wanted, 8)
        assert list(one.token_ids) == tokens
        check_captured(one, capture, prompt, after)
