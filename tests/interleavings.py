"""Random interleavings of steered, captured and plain requests in one engine, in its process.

They come while others run, go on where earlier ones ended, are aborted, preempted, and computed in parts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from inside_engine import n_preempted
from position_ranges import ranges

from morfi.engine.directions import Direction
from morfi.engine.operations import OPERATIONS
from morfi.engine.protocol import Completion, Sampling
from morfi.engine.steering import Capture, Positions, Steering
from morfi.errors import InputError
from morfi.serve.engine import Engine

D_MODEL, CONTEXT = 64, 256
_draw = torch.Generator().manual_seed(11)
TEXTS = [torch.randint(35, 200, (100,), generator=_draw).tolist() for _ in range(2)]
DIRECTIONS = [
    Direction(torch.randn(D_MODEL, generator=_draw) * 2),
    Direction(torch.randn(D_MODEL, generator=_draw), torch.randn(D_MODEL, generator=_draw) * 0.3, bias=0.5),
]
NAMES = [direction.sha256 for direction in DIRECTIONS]

places = st.integers(-40, 120)
named: list[Positions] = ["all", "prompt", "generated", "last_prompt"]
listed: list[Positions] = [(-1,), ((-3, None),), ((0, -1),), ((40, 70), -1)]
positions: st.SearchStrategy[Positions] = st.sampled_from(named + listed) | st.lists(
    places | ranges(places), min_size=1, max_size=3
).map(tuple)
operations = st.sampled_from(
    [(one, strength) for one in OPERATIONS.values() for strength in ((2.0, -1.5) if one.amount else (0.0,))]
)
layers = st.sampled_from([0, 0, 1])
steerings = st.lists(
    st.builds(
        lambda layer, operation, name, positions: Steering(
            layer,
            NAMES[1] if operation[0].needs_latent else name,
            operation[0].name,
            operation[1],
            positions,
            operation[1] - 1.0 if operation[0].has_low else 0.0,
        ),
        layers,
        operations,
        st.sampled_from(NAMES),
        positions,
    ),
    max_size=3,
).map(tuple)
captures = st.none() | st.builds(Capture, st.sampled_from([(0,), (1, 0)]), positions, st.booleans())
samplings = st.builds(
    lambda max_tokens, seed: Sampling(max_tokens=max_tokens, temperature=float(seed is not None), seed=seed),
    st.sampled_from([1, 2, 6, 24, 40]),
    st.sampled_from([None, None, 7]),
)
more = st.lists(st.integers(35, 120), min_size=1, max_size=9).map(tuple)


@dataclass(frozen=True)
class Asked:
    """A request."""

    prompt: tuple[int, ...]
    sampling: Sampling
    steering: tuple[Steering, ...]
    capture: Capture | None


wanted = st.tuples(samplings, steerings, captures)


class Interleaving(RuleBasedStateMachine):
    """One engine, to which requests come at any time."""

    engine: ClassVar[Engine]
    takes_seeds: ClassVar[bool]
    cold: ClassVar[dict[Asked, Completion]]
    seen: ClassVar[Counter[str]]

    def __init__(self) -> None:
        super().__init__()
        self.core = self.engine._llm.llm_engine
        self.running: dict[str, tuple[Asked, str]] = {}  # and vLLM's own id, by ours
        self.ended: list[tuple[Asked, Completion]] = []

    @initialize()
    def begin(self) -> None:
        """Something is cached, steered and not, and read again."""
        self.engine.reset_prefix_cache()
        for steering in ((), (Steering(0, NAMES[0], strength=2.0),)):
            for end in ((50,), (50, 51, 52)):
                self.submit((*TEXTS[0][:97], *end), (Sampling(max_tokens=2), steering, None))
                self.step(50)

    def submit(self, prompt: tuple[int, ...], what: Any) -> None:
        asked = Asked(prompt, *what)
        if asked.sampling.seed is not None and not self.takes_seeds:
            asked = Asked(prompt, Sampling(asked.sampling.max_tokens), *what[1:])
        if len(prompt) + asked.sampling.max_tokens > CONTEXT:
            return
        try:
            (one,) = self.engine._wanted(
                [prompt], asked.sampling, steering=[asked.steering], capture=asked.capture
            )
        except InputError:  # steerings that contradict each other
            return
        request_id = f"mixed-{next(self.engine._request_number)}"
        own_id = self.core.add_request(
            request_id, {"prompt_token_ids": list(prompt)}, self.engine._params(one)
        )
        self.running[request_id] = asked, own_id

    @rule(text=st.sampled_from(TEXTS), length=st.sampled_from([1, 31, 33, 64, 65, 97]), end=more, what=wanted)
    def ask(self, text: list[int], length: int, end: tuple[int, ...], what: Any) -> None:
        self.submit((*text[:length], *end), what)

    @precondition(lambda self: self.running or self.ended)
    @rule(number=st.integers(0, 2), end=more, what=wanted)
    def go_on(self, number: int, end: tuple[int, ...], what: Any) -> None:
        asked, answer = self.one_that_ended(number)
        self.submit((*asked.prompt, *answer.token_ids, *end), what)

    @rule(
        text=st.sampled_from(TEXTS),
        length=st.sampled_from([33, 65]),
        what=wanted,
        ends=st.lists(more, min_size=2),
    )
    def chat(self, text: list[int], length: int, what: Any, ends: list[tuple[int, ...]]) -> None:
        """Several turns, each steered like the one before, while others run."""
        sampling, steering, _ = what
        prompt = tuple(text[:length])
        for end in ends[:3]:
            prompt += end
            before = set(self.running)
            self.submit(prompt, (sampling, steering, None))
            for request_id in set(self.running) - before:
                while request_id in self.running:
                    self.step(1)
                prompt += next(
                    answer.token_ids for asked, answer in reversed(self.ended) if asked.prompt == prompt
                )

    @rule(length=st.sampled_from([65, 97]), what=wanted)
    def crowd(self, length: int, what: Any) -> None:
        """More at once than memory holds to their ends: some are preempted."""
        _, steering, capture = what
        for first in range(8):
            prompt = (120 + first, *TEXTS[first % 2][:length])
            self.submit(prompt, (Sampling(max_tokens=40), steering, capture))

    def one_that_ended(self, number: int) -> tuple[Asked, Completion]:
        """One of the last requests and its answer; where none has ended, the first that does."""
        while not self.ended:
            self.step(1)
        return self.ended[-1 - number % len(self.ended)]

    @precondition(lambda self: self.running)
    @rule(number=st.integers(0, 99), what=wanted)
    def ask_the_same_otherwise(self, number: int, what: Any) -> None:
        asked, _ = list(self.running.values())[number % len(self.running)]
        self.submit(asked.prompt, what)

    @precondition(lambda self: self.running)
    @rule(number=st.integers(0, 99))
    def abort(self, number: int) -> None:
        request_id = list(self.running)[number % len(self.running)]
        self.core.abort_request([request_id])
        _, own_id = self.running.pop(request_id)
        self.engine._take_reports({0: [own_id]})
        self.seen["aborted"] += 1

    @rule(n=st.sampled_from([1, 2, 5, 50]))
    def step(self, n: int) -> None:
        for _ in range(n):
            if not self.core.has_unfinished_requests():
                break
            for output in self.core.step():
                if output.finished:
                    self.end(output)

    def end(self, output: Any) -> None:
        asked, own_id = self.running.pop(output.request_id)
        ((found,),) = self.engine._completions([output])
        if asked.steering or asked.capture is not None:
            (one,) = self.engine._wanted(
                [asked.prompt], asked.sampling, steering=[asked.steering], capture=asked.capture
            )
            ((reports,),) = self.engine._take_reports({0: [own_id]}).values()
            found = self.engine._followed(found, one, reports, len(asked.prompt), 0)
        self.ended.append((asked, found))

    def teardown(self) -> None:
        while self.running:
            self.step(50)
        for asked, found in self.ended:
            kind = "steered" if asked.steering else "plain"
            self.seen[f"{kind}, cached"] += found.n_cached_tokens > 0
            self.seen["captured"] += asked.capture is not None
            check(asked, found, self.alone(asked))

    def alone(self, asked: Asked) -> Completion:
        """The answer of the engine to this request alone, with nothing cached."""
        if asked not in self.cold:
            self.engine.reset_prefix_cache()
            ((found,),) = self.engine.generate(
                [asked.prompt], asked.sampling, steering=[asked.steering], capture=asked.capture
            )
            assert found.n_cached_tokens == 0
            self.cold[asked] = found
        return self.cold[asked]


def check(asked: Asked, found: Completion, expected: Completion) -> None:
    assert found.token_ids == expected.token_ids, asked
    assert found.applied == expected.applied, asked
    for mine, its in zip(found.captured, expected.captured, strict=True):
        assert (mine.layer, mine.positions, mine.token_ids) == (its.layer, its.positions, its.token_ids)
        torch.testing.assert_close(mine.values, its.values, rtol=1e-4, atol=1e-4)


def run_interleavings(
    engine: Engine, *, n_examples: int, n_steps: int, takes_seeds: bool, derandomize: bool
) -> Counter[str]:
    """Runs that many interleavings; returns how often what happened."""
    for direction in DIRECTIONS:
        engine.register(direction)
    seen: Counter[str] = Counter()
    found = {"engine": engine, "takes_seeds": takes_seeds, "cold": {}, "seen": seen}
    machine = type("Machine", (Interleaving,), found)
    before = n_preempted(engine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=n_examples,
            stateful_step_count=n_steps,
            deadline=None,
            derandomize=derandomize,
            suppress_health_check=list(HealthCheck),
        ),
    )
    seen["preempted"] = n_preempted(engine) - before
    for direction in DIRECTIONS:
        engine.release(direction.sha256)
    return seen
