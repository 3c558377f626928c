"""The checks of an architecture, all on one engine: answers, steering, capture, swaps."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from hooked_model import Served, check_mixed_batch, draw_prompts
from tiny_training import FACTS, TrainTiny
from transformers import AutoModelForCausalLM

from morfi.checkpoints import Checkpoint, resolve_live
from morfi.checkpoints.adapters import load_adapter
from morfi.checkpoints.lora import merged_tensors
from morfi.checkpoints.merge_plan import plan_merge
from morfi.checkpoints.model_files import open_model
from morfi.engine.protocol import Completion, Sampling
from morfi.engine.steering import Capture
from morfi.errors import MorfiError, reason_of
from morfi.verification.checks import check_answers, check_capture, check_operations
from morfi.verification.lines import Line, Outcome
from morfi.verification.positions import check_positions
from morfi.verification.sharing import check_mixed_batch as verify_mixed_batch
from morfi.verification.subject import Subject, open_subject
from morfi.verification.swap import WHOLE
from morfi.verification.swap import check_swap as verify_swap
from morfi.verification.verify import Check

YES, ADAPTERS = "yes", "adapters"
N_TOKENS = 6
EVERYTHING = Capture((0, 1), "all")


@dataclass
class Opened:
    """An engine on a tiny model of an architecture, the same in transformers, and an empty folder."""

    architecture: str
    served: Served
    base: Checkpoint
    made: Path

    @functools.cached_property
    def subject(self) -> Subject:
        """What `morfi verify` would look at."""
        return open_subject(self.served.engine, self.base)

    def generate(self) -> list[Completion]:
        """The answers to some prompts, where nothing is cached, with all residual streams."""
        prompts = draw_prompts(random.Random(3), 8)
        self.served.engine.reset_prefix_cache()
        found = self.served.engine.generate(prompts, Sampling(max_tokens=N_TOKENS), capture=EVERYTHING)
        return [answer for (answer,) in found]


def outcome(opened: Opened, column: str) -> str:
    """What docs/models.md says of an architecture in a column: yes, or why not."""
    if (failure := _failure(opened, CHECKS[column])) is not None:
        return failure
    if column == "swap" and (failure := _failure(opened, check_swap_whole)) is not None:
        return f"{ADAPTERS}: {failure}"
    return YES


def _failure(opened: Opened, check: Callable[[Opened], None]) -> str | None:
    """The reason for a refusal, without folders and details; a wrong answer is no refusal, and raises."""
    try:
        check(opened)
    except MorfiError as error:
        return re.sub(r"\S*/| \([^)]*\)", "", reason_of(error))
    return None


def _holds(opened: Opened, *verifying: Check) -> None:
    """Asserts what `morfi verify` asserts; raises MorfiError where the engine refuses what is looked at."""
    for line in (line for check in verifying for line in check(opened.subject)):
        if line.outcome == Outcome.UNCHECKED:
            raise MorfiError(line.says.removeprefix("because the engine refuses it: "))
        assert line.outcome == Outcome.HOLDS, line


def check_eval(opened: Opened) -> None:
    """Greedy answers are those of transformers."""
    _holds(opened, check_answers)


def check_captures(opened: Opened) -> None:
    """The residual stream after layer L is `hidden_states[L + 1]` of transformers, before the last norm."""
    _holds(opened, check_capture)
    for prompt, answer in zip(draw_prompts(random.Random(3), 8), opened.generate(), strict=True):
        tokens = torch.tensor([[*prompt, *answer.token_ids[:-1]]])
        with torch.no_grad():
            found = opened.served.reference(tokens, output_hidden_states=True, use_cache=False).hidden_states
        torch.testing.assert_close(answer.captured[0].values, found[1][0], rtol=1e-4, atol=1e-4)


def check_steer(opened: Opened) -> None:
    """Every operation, alone and in a mixed batch of 64, is what hooks in transformers make of it."""
    _holds(opened, check_operations, check_positions, verify_mixed_batch)
    check_mixed_batch(opened.served, seed=1, n_tokens=N_TOKENS)


def check_adapter(opened: Opened) -> None:
    """An adapter in the live engine is the merged model; after it the base is what it was, bit for bit."""
    before = opened.generate()
    _holds(opened, _lines_of_adapters)
    assert _are_equal(opened.generate(), before)


def _lines_of_adapters(subject: Subject) -> Iterator[Line]:
    """The lines of `morfi verify` on swaps but for a whole model, which may be refused where adapters go."""
    return (line for line in verify_swap(subject) if line.name != WHOLE)


def check_swap_whole(opened: Opened) -> None:
    """Another model of the same form takes the place of the base, and gives it back, bit for bit."""
    before = opened.generate()
    other = AutoModelForCausalLM.from_pretrained(opened.base.model_dir, dtype=torch.float32).eval()
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    folder = opened.made / "it"
    other.save_pretrained(folder)
    for path in opened.base.model_dir.iterdir():
        if not (folder / path.name).exists():
            (folder / path.name).write_bytes(path.read_bytes())
    engine = opened.served.engine
    engine.load_checkpoint(resolve_live(str(folder), base=opened.base))
    try:
        assert not _are_equal(opened.generate(), before)
        prompts = draw_prompts(random.Random(4), 16)
        swapped = replace(opened.served, reference=other)
        check_mixed_batch(swapped, seed=5, n_tokens=N_TOKENS, prompts=prompts)
    finally:
        engine.load_checkpoint(opened.base)
    assert _are_equal(opened.generate(), before)


def check_train(opened: Opened) -> None:
    """The trainer's adapters are adapters of this model, and change what it says."""
    folder = opened.made / "trained"
    TrainTiny(opened.base.model_dir, FACTS)(folder)
    trained = sorted(path.parent for path in folder.rglob("adapter_model.safetensors"))
    assert trained
    files = open_model(opened.base.model_dir)
    for path in trained:
        plan = plan_merge(files, load_adapter(path), "float32")
        merged = dict(merged_tensors(files.weights, plan))
        changed = [name for name in plan.edits if not torch.equal(merged[name], files.weights.tensor(name))]
        assert len(changed) == len(plan.edits) > 0


CHECKS: Mapping[str, Callable[[Opened], None]] = {
    "eval": check_eval,
    "steer": check_steer,
    "capture": check_captures,
    "swap": check_adapter,
    "train": check_train,
}


def _are_equal(some: list[Completion], others: list[Completion]) -> bool:
    return all(
        one.token_ids == other.token_ids
        and all(torch.equal(a.values, b.values) for a, b in zip(one.captured, other.captured, strict=True))
        for one, other in zip(some, others, strict=True)
    )
