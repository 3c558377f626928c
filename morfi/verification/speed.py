"""The speed of each kind of work, beside plain requests and beside vLLM alone, and what waits for the GPU."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence

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
_LIKELY = (0.7, 1.3)  # of vLLM's rate without morfi: where plain requests are on a machine at rest
_STEADY = 2.0  # times the lowest: where the highest of the rounds is on a machine at rest
_BUSY = "the machine was busy: these figures say little"


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
    figures = _figures(seconds[kind])
    if kind == "plain":
        says = f"{rates[kind]:.3g} requests/s, {_ROUNDS} {_range(figures)}"
        return Line(_line_of(kind), Outcome.MEASURED, _with_remark(says, _varies(figures)), figures)
    shares = [plain / own for plain, own in zip(seconds["plain"], seconds[kind], strict=True)]
    share = statistics.median(shares)
    says = (
        f"{rates[kind]:.3g} requests/s, plain ones {rates['plain']:.3g}; {share:.0%} of plain, {_ROUNDS} "
        f"({min(shares):.0%} to {max(shares):.0%})"
    )
    is_busy = _varies(figures) or max(shares) > _STEADY * min(shares)
    figures |= {"plain_requests_per_s": rates["plain"], "share": share}
    return Line(_line_of(kind), Outcome.MEASURED, _with_remark(says, is_busy), figures)


def beside_vllm(lines: Sequence[Line], answer_alone: Callable[[], Sequence[float]]) -> Line:
    """The rates of `lines`, which `check_speed` gave, beside those of vLLM without morfi's plugin.

    `answer_alone` makes it answer `distinct_prompts` N_ROUNDS times, and gives the seconds of each.
    """
    measured = {line.name: line.figures for line in lines if line.outcome == Outcome.MEASURED}
    found = {kind: measured[_line_of(kind)] for kind in KINDS if _line_of(kind) in measured}
    if not found:
        return unchecked(_ALONE, "there is no speed to compare it with")
    try:
        alone = _figures(answer_alone())
    except MorfiError as error:
        return unchecked(_ALONE, reason_of(error))
    rate = alone["requests_per_s"]
    shares = {kind: figures["requests_per_s"] / rate for kind, figures in found.items()}
    beside = ", ".join(f"{kind} {share:.0%}" for kind, share in shares.items())
    says = f"{rate:.3g} requests/s, {_ROUNDS} {_range(alone)}; with morfi {beside}"
    low, high = _LIKELY
    is_busy = any(map(_varies, (alone, *found.values()))) or not low <= shares.get("plain", 1.0) <= high
    named = {f"{kind}_share": share for kind, share in shares.items()}
    return Line(_ALONE, Outcome.MEASURED, _with_remark(says, is_busy), alone | named)


def _line_of(kind: str) -> str:
    return f"speed: {kind}"


def _rate(seconds: Sequence[float]) -> float:
    """Requests per second in the median round."""
    return N_REQUESTS / statistics.median(seconds)


def _figures(seconds: Sequence[float]) -> dict[str, float]:
    """Requests per second in the median, the slowest and the fastest round."""
    return {
        "requests_per_s": _rate(seconds),
        "lowest_requests_per_s": N_REQUESTS / max(seconds),
        "highest_requests_per_s": N_REQUESTS / min(seconds),
    }


def _range(figures: Mapping[str, float]) -> str:
    return f"({figures['lowest_requests_per_s']:.3g} to {figures['highest_requests_per_s']:.3g})"


def _varies(figures: Mapping[str, float]) -> bool:
    """Whether the rounds differ by more than those of a machine at rest."""
    return figures["highest_requests_per_s"] > _STEADY * figures["lowest_requests_per_s"]


def _with_remark(says: str, is_busy: bool) -> str:
    return f"{says}; {_BUSY}" if is_busy else says


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
