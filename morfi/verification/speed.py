"""The speed of each kind of work beside requests that ask for none, and what waits for the GPU."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Iterator

from morfi.device import is_gpu
from morfi.engine.operations import ADD
from morfi.engine.steering import Capture, Steering
from morfi.verification.lines import Line, Outcome, attempt, unchecked
from morfi.verification.subject import Prompt, Subject

N_REQUESTS = 16
N_ROUNDS = 5
KINDS = ("plain", "steered", "captured")
_TINY = 1e-6  # residual norms: the work of a steering, and the answers of none
_WAITING = "synchronising calls"


def check_speed(subject: Subject) -> Iterator[Line]:
    """The rate of steered and of captured requests, each beside plain ones in the same rounds.

    Plain requests ask nothing of the plugin, which is loaded: they run as vLLM runs them. Steered ones are
    changed after the middle layer by too little to change an answer; captured is the last prompt token there.
    """
    for kind in KINDS[1:]:
        yield attempt(f"speed: {kind}", _speed, subject, kind)


def _speed(subject: Subject, kind: str) -> Line:
    for warmed in ("plain", kind):
        _answer(subject, warmed)
    seconds: dict[str, list[float]] = {"plain": [], kind: []}
    for number in range(N_ROUNDS):
        for one in ("plain", kind)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            _answer(subject, one)
            seconds[one].append(time.perf_counter() - began)
    rates = {one: N_REQUESTS / statistics.median(each) for one, each in seconds.items()}
    shares = [plain / own for plain, own in zip(seconds["plain"], seconds[kind], strict=True)]
    share = statistics.median(shares)
    says = (
        f"{rates[kind]:.3g} requests/s, plain ones {rates['plain']:.3g}; {share:.0%} of plain, median of "
        f"{N_ROUNDS} rounds of {N_REQUESTS} requests ({min(shares):.0%} to {max(shares):.0%})"
    )
    figures = {"requests_per_s": rates[kind], "plain_requests_per_s": rates["plain"], "share": share}
    return Line(f"speed: {kind}", Outcome.MEASURED, says, figures)


def check_waiting(subject: Subject) -> Iterator[Line]:
    """How often torch waits for the GPU in a batch of each kind."""
    if not is_gpu():
        yield unchecked(_WAITING, "there is no GPU")
        return
    settings = subject.engine.settings
    if any(settings.get(f"{kind}_parallel_size", 1) > 1 for kind in ("tensor", "pipeline")):
        yield unchecked(_WAITING, "the model runs in other processes")
        return
    yield attempt(_WAITING, _waiting, subject)


def _waiting(subject: Subject) -> Line:
    import torch

    counts = {}
    for kind in KINDS:
        _answer(subject, kind)
        with warnings.catch_warnings(record=True) as calls:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                _answer(subject, kind)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts[kind] = sum("synchroniz" in str(one.message) for one in calls)
    said = ", ".join(f"{kind} {n}" for kind, n in counts.items())
    return Line(_WAITING, Outcome.MEASURED, f"{said}, by {N_REQUESTS} requests", dict(counts))


def _answer(subject: Subject, kind: str) -> None:
    """Answers a batch of one kind, no beginning of which is cached or shared."""
    prompts = _distinct(subject)
    layer = subject.n_layers // 2
    steering: list[Steering] = []
    if kind == "steered":
        steering = [subject.steering(ADD, layer, amount=_TINY)]
    capture = Capture((layer,)) if kind == "captured" else None
    subject.engine.reset_prefix_cache()
    subject.ask(prompts, [steering] * len(prompts), [capture] * len(prompts))


def _distinct(subject: Subject) -> list[Prompt]:
    """Prompts that differ from their first token on."""
    n = len(subject.prompts)
    return [
        (number % subject.standard.exact.n_vocab, *subject.prompts[number % n])
        for number in range(N_REQUESTS)
    ]
