"""Requests that share an engine: cached prefixes, and batches of requests that are steered differently."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from morfi.engine.operations import ADD, OPERATIONS
from morfi.engine.protocol import Completion
from morfi.engine.steering import Capture, Steering
from morfi.verification.arithmetic import KNOWN
from morfi.verification.differences import Differences
from morfi.verification.lines import Line, attempt, unchecked
from morfi.verification.subject import SEEN, Prompt, Subject
from morfi.verification.tolerance import distances, root_mean_square

_CACHE = "prefix cache and steering"
_BATCH = "mixed batch"
N_MIXED = 24  # requests in one batch
_AMOUNTS = (1.0, -1.0, 2.0, -2.0, 4.0, -4.0, 8.0)  # in residual norms: the smallest that is seen is taken


def check_prefix_cache(subject: Subject) -> Iterator[Line]:
    """Cached prefixes beside steering."""
    yield attempt(_CACHE, _cached, subject)


def check_mixed_batch(subject: Subject) -> Iterator[Line]:
    """Requests of many kinds in one batch."""
    yield attempt(_BATCH, _mixed, subject)


def _cached(subject: Subject) -> Line:
    """One prompt plain, steered and plain again, from the cache and not: always as the reference answers.

    Only the cached beginning is steered, so whatever the steering does it does through the cache.
    """
    prompt = subject.long_prompt
    subject.engine.reset_prefix_cache()
    plain = [subject.ask([prompt])[0] for _ in range(2)]
    n_cached = plain[1].n_cached_tokens
    if not n_cached:
        return unchecked(_CACHE, f"a prompt of {len(prompt)} tokens was not cached")
    steering = _visible(subject, prompt, plain[0], n_cached)
    if steering is None:
        return unchecked(_CACHE, "no steering of the cached beginning changes the answer")
    first = subject.ask([prompt], [[steering]])[0]
    plain.append(subject.ask([prompt])[0])
    steered = [first, subject.ask([prompt], [[steering]])[0]]
    found = Differences()
    for wanted, answers, what in (
        ((), plain, "the plain answer"),
        ((steering,), steered, "the steered answer"),
    ):
        for number, answer in enumerate(answers):
            expected = subject.follow(prompt, answer, wanted)
            found.take_tokens(answer, expected, len(prompt), f"{what}, time {number + 1}")
    made = found.line(_CACHE)
    figures = {**made.figures, "cached": n_cached, "steered_cached": steered[1].n_cached_tokens}
    says = f"{n_cached} tokens cached, steered {steered[1].n_cached_tokens}; {made.says}"
    return Line(_CACHE, made.outcome, says, figures)


def _visible(subject: Subject, prompt: Prompt, plain: Completion, n_cached: int) -> Steering | None:
    """A steering of the first `n_cached` positions under which the plain answer would be wrong."""
    for amount in _AMOUNTS:
        one = subject.steering(ADD, 0, amount=amount, positions=((0, n_cached),))
        found = Differences()
        found.take_tokens(plain, subject.follow(prompt, plain, [one]), len(prompt), "")
        if found.tokens.value > SEEN * found.tokens.allowed:
            return one
    return None


def _mixed(subject: Subject) -> Line:
    """Requests steered in many ways and not at all, in one batch: each as it is alone."""
    prompts, steering = _mixture(subject)
    capture = [Capture((subject.n_layers - 1,), "prompt")] * len(prompts)
    subject.engine.reset_prefix_cache()
    batch = subject.ask(prompts, steering, capture)
    found, n_other = Differences(), 0
    for number, (prompt, wanted, answer) in enumerate(zip(prompts, steering, batch, strict=True)):
        (alone,) = subject.ask([prompt], [wanted], capture[:1])
        expected = subject.follow(prompt, answer, wanted)
        (own,), (other,) = answer.captured, alone.captured
        off = float(root_mean_square(distances(own.values, other.values)))
        found.take_stream(off, expected.allowed[own.layer], f"of request {number}", len(own.values))
        found.take_tokens(answer, expected, len(prompt), f"request {number}")
        n_other += answer.token_ids != alone.token_ids
    made = found.line(_BATCH)
    says = f"{len(prompts)} requests, {n_other} with other tokens than alone; {made.says}"
    return Line(_BATCH, made.outcome, says, {**made.figures, "requests": len(prompts), "other": n_other})


def _mixture(subject: Subject) -> tuple[list[Prompt], list[list[Steering]]]:
    """Prompts, and for each a steering of its own: every third has none."""
    prompts = list(itertools.islice(itertools.cycle(subject.prompts), N_MIXED))
    operations = itertools.cycle(one for one in OPERATIONS.values() if one.name in KNOWN)
    layers = itertools.cycle(subject.some_layers)
    steering = [
        [subject.steering(next(operations), next(layers), amount=0.5 + n / N_MIXED, number=n % 4)]
        if n % 3
        else []
        for n in range(N_MIXED)
    ]
    return prompts, steering
