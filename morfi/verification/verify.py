"""All checks of one checkpoint on this machine, line by line: `morfi verify`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from morfi.checkpoints import resolve
from morfi.device import free_memory
from morfi.engine.protocol import StartEngine, TimeVllm
from morfi.errors import MorfiError, reason_of
from morfi.questions.prompts import context_for
from morfi.runs.options import option
from morfi.terminal import Say
from morfi.verification.checks import check_answers, check_capture, check_operations
from morfi.verification.lines import Line, Outcome, unchecked
from morfi.verification.positions import check_positions
from morfi.verification.sharing import check_mixed_batch, check_prefix_cache
from morfi.verification.speed import N_ROUNDS, beside_vllm, check_speed, check_waiting, distinct_prompts
from morfi.verification.subject import N_TOKENS, Subject, open_subject
from morfi.verification.swap import check_swap

CONTEXT = 256  # tokens, enough for every check
Check = Callable[[Subject], Iterator[Line]]
EXACT: tuple[Check, ...] = (
    check_answers,
    check_capture,
    check_operations,
    check_positions,
    check_prefix_cache,
    check_mixed_batch,
    check_swap,
)
MEASURED: tuple[Check, ...] = (check_waiting, check_speed)


@dataclass(frozen=True, slots=True)
class VerifyConfig:
    """What is verified: a checkpoint, under the settings that its engine is to have."""

    ckpt: str = option("Preset, model or LoRA adapter folder, or hub id.")
    base: str | None = None
    dtype: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verified:
    """What was verified, for whoever reads the report elsewhere."""

    architecture: str
    dtype: str
    device: str
    n_layers: int
    d_model: int
    engine: Mapping[str, Any]  # settings that were given
    tolerance: str


def verify(
    config: VerifyConfig,
    start_engine: StartEngine,
    time_vllm: TimeVllm,
    say: Say,
    *,
    on_subject: Callable[[Verified], None],
    on_line: Callable[[Line], None],
) -> Verified:
    """Makes every check of `config`; `on_line` is given each line as it is found.

    The engine is closed and its memory free before `time_vllm` starts another one.

    Raises InputError for a checkpoint or setting that is refused, and MorfiError where the engine does not
    start.
    """
    checkpoint = resolve(config.ckpt, base=config.base, dtype=config.dtype, say=say)
    if checkpoint.adapter_sha256 is not None:  # a merged model, for which adapters are made as for any
        checkpoint = resolve(str(checkpoint.model_dir), dtype=checkpoint.dtype)
    context = context_for(checkpoint, config.engine)
    if "max_model_len" not in config.engine:
        context = min(CONTEXT, context)
    say("starting the engine")
    with start_engine(checkpoint, context=context, seed=0, overrides=config.engine) as engine:
        say("loading the same model into transformers")
        subject = open_subject(engine, checkpoint)
        verified = _verified(subject, config)
        on_subject(verified)
        lines = []
        for line in _lines(subject):
            lines.append(line)
            on_line(line)
    prompts = distinct_prompts(subject)
    del engine, subject
    free_memory()
    say("starting vLLM without morfi")

    def answer_alone() -> list[float]:
        n = {"n_tokens": N_TOKENS, "n_rounds": N_ROUNDS}
        return time_vllm(checkpoint, prompts, context=context, overrides=config.engine, **n)

    on_line(beside_vllm(lines, answer_alone))
    return verified


def _lines(subject: Subject) -> Iterator[Line]:
    """The line of every check; only one where the engine cannot answer even a plain request."""
    try:
        subject.ask(subject.prompts[:1], n_tokens=1)
    except (MorfiError, RuntimeError) as error:  # vLLM's own
        yield unchecked("every check", f"the engine fails at a plain request: {reason_of(error)}")
        return
    for check in (*EXACT, *MEASURED):
        yield from check(subject)


def _verified(subject: Subject, config: VerifyConfig) -> Verified:
    return Verified(
        architecture=type(subject.standard.exact.model).__name__,
        dtype=subject.checkpoint.dtype,
        device=subject.engine.device,
        n_layers=subject.n_layers,
        d_model=int(subject.streams[0].after[0].shape[1]),
        engine=config.engine,
        tolerance=subject.standard.says,
    )


def fault_of(lines: Sequence[Line]) -> str | None:
    """What is wrong with an engine of which these lines were found; None for nothing."""
    wrong = [line.name for line in lines if line.outcome == Outcome.DIFFERS]
    if wrong:
        return f"{len(wrong)} of {len(lines)} checks differ: {', '.join(wrong)}"
    if not any(line.outcome == Outcome.HOLDS for line in lines):
        return "nothing could be checked"
    return None
