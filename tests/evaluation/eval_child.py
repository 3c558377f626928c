"""`morfi` in a process of its own that tests may kill: a slow engine and ready prompts replace the model.

Arguments: the seconds that a batch takes, then those of the command.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import morfi.evaluation.evaluate
import morfi.serve.engine
from morfi.checkpoints import Checkpoint
from morfi.cli import main
from morfi.engine.protocol import Completion
from morfi.evaluation.config import EvalConfig
from morfi.questions import QuestionSet
from morfi.questions.prompts import Prompt
from morfi.questions.question import Question
from morfi.runs.answering import Answering, Task

PAUSE_S = float(sys.argv.pop(1))
QUESTIONS = tuple(
    Question(f"q{i:04}", f"P{i % 3}", f"s{i}", f"What of s{i}?", (f"answer {i % 5}",)) for i in range(240)
)


class Slow:
    """Answers after a pause, from the prompt alone."""

    settings: Mapping[str, Any] = {}
    device = "slow"

    def generate(self, prompts: Sequence[Sequence[int]], *_: Any) -> list[list[Completion]]:
        time.sleep(PAUSE_S)
        return [[Completion(f" answer {ids[0] % 7}", tuple(ids), "stop", 0)] for ids in prompts]

    def reset_prefix_cache(self) -> None:
        pass


@contextlib.contextmanager
def start(*_: Any, **__: Any) -> Iterator[Slow]:
    yield Slow()


def prepare(config: EvalConfig, progress: Any) -> Task:
    prompts = tuple(Prompt(question, f"Q: {question.text}\nA:", (i,)) for i, question in enumerate(QUESTIONS))
    checkpoint = Checkpoint("slow", Path("slow"), "c" * 64, "slow", "c" * 64, None, "float32")
    data = QuestionSet("facts", "d" * 64, {"all": QUESTIONS})
    return Task(
        kind="eval",
        config=asdict(config),
        answering=Answering(config.max_tokens, config.match, config.batch, config.seed, config.engine),
        checkpoint=checkpoint,
        data=data,
        split_of={question.id: "all" for question in QUESTIONS},
        prompts=prompts,
        prompt_form="Q",
        context=64,
        bos=False,
        fingerprint=f"{config.batch}",
        again="morfi eval --resume {run_id} --db {db}",
    )


morfi.serve.engine.start_engine = start  # type: ignore[assignment]
morfi.evaluation.evaluate.prepare = prepare
main()
