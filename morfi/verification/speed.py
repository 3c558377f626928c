"""The speed of each kind of work, beside plain requests and beside vLLM alone, and what waits for the GPU."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

from morfi.device import is_gpu
from morfi.engine.operations import ADD
from morfi.engine.steering import Capture, Steering
from morfi.errors import MorfiError, reason_of
from morfi.verification.lines import Line, Outcome, attempt, unchecked
from morfi.verification.subject import Prompt, Subject

N_REQUESTS = 16
N_ROUNDS = 5
KINDS = ("plain", "steered", "captured")
_TINY = 1e-6  # residual norms: the work of a steering, and the answers of none
_WAITING = "synchronising calls"
_ALONE = "speed: vLLM without morfi"
_ROUNDS = f"median of {N_ROUNDS} rounds of {N_REQUESTS} requests"


def check_speed(subject: Subject) -> Iterator[Line]:
    """The rate of plain requests, and of steered and captured ones beside plain ones in the same rounds.

    Plain requests ask nothing of the plugin, which is loaded. Steered ones are changed after the middle layer
    by too little to change an answer; captured is the last prompt token there.
    """
    for kind in KINDS:
        yield attempt(_line_of(kind), _speed, subject, kind)


def _speed(subject: Subject, kind: str) -> Line:
    kinds = tuple(dict.fromkeys(("plain", kind)))
    for warmed in kinds:
        _answer(subject, warmed)
    seconds: dict[str, list[float]] = {one: [] for one in kinds}
    for number in range(N_ROUNDS):
        for one in kinds[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            _answer(subject, one)
            seconds[one].append(time.perf_counter() - began)
    rates = {one: _rate(each) for one, each in seconds.items()}
    figures = {"requests_per_s": rates[kind]}
    if kind == "plain":
        return Line(_line_of(kind), Outcome.MEASURED, f"{rates[kind]:.3g} requests/s, {_ROUNDS}", figures)
    shares = [plain / own for plain, own in zip(seconds["plain"], seconds[kind], strict=True)]
    share = statistics.median(shares)
    says = (
        f"{rates[kind]:.3g} requests/s, plain ones {rates['plain']:.3g}; {share:.0%} of plain, {_ROUNDS} "
        f"({min(shares):.0%} to {max(shares):.0%})"
    )
    figures |= {"plain_requests_per_s": rates["plain"], "share": share}
    return Line(_line_of(kind), Outcome.MEASURED, says, figures)


def beside_vllm(lines: Sequence[Line], answer_alone: Callable[[], Sequence[float]]) -> Line:
    """The rates of `lines`, which `check_speed` gave, beside those of vLLM without morfi's plugin.

    `answer_alone` makes it answer `distinct_prompts` N_ROUNDS times, and gives the seconds of each.
    """
    found = {line.name: line.figures for line in lines if line.outcome == Outcome.MEASURED}
    rates = {kind: found[_line_of(kind)]["requests_per_s"] for kind in KINDS if _line_of(kind) in found}
    if not rates:
        return unchecked(_ALONE, "there is no speed to compare it with")
    try:
        alone = _rate(answer_alone())
    except MorfiError as error:
        return unchecked(_ALONE, reason_of(error))
    shares = {f"{kind}_share": rate / alone for kind, rate in rates.items()}
    beside = ", ".join(f"{kind} {rate / alone:.0%}" for kind, rate in rates.items())
    says = f"{alone:.3g} requests/s, {_ROUNDS}; with morfi {beside}"
    return Line(_ALONE, Outcome.MEASURED, says, {"requests_per_s": alone, **shares})


def _line_of(kind: str) -> str:
    return f"speed: {kind}"


def _rate(seconds: Sequence[float]) -> float:
    """Requests per second in the median round."""
    return N_REQUESTS / statistics.median(seconds)


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
    prompts = distinct_prompts(subject)
    layer = subject.n_layers // 2
    steering: list[Steering] = []
    if kind == "steered":
        steering = [subject.steering(ADD, layer, amount=_TINY)]
    capture = Capture((layer,)) if kind == "captured" else None
    subject.engine.reset_prefix_cache()
    subject.ask(prompts, [steering] * len(prompts), [capture] * len(prompts))


def distinct_prompts(subject: Subject) -> list[Prompt]:
    """Prompts that differ from their first token on."""
    n = len(subject.prompts)
    return [
        (number % subject.standard.exact.n_vocab, *subject.prompts[number % n])
        for number in range(N_REQUESTS)
    ]
