"""`morfi` in a process of its own that tests may kill: a slow engine and ready prompts replace the model.

Arguments: the seconds that a batch takes, then those of the command.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import morfi.evaluation.evaluate
import morfi.serve.engine
from morfi.checkpoints import Checkpoint
from morfi.cli import main
from morfi.evaluation.config import EvalConfig
from morfi.questions import QuestionSet
from morfi.questions.prompts import Prompt, Prompted
from morfi.questions.question import Question
from morfi.runs.answering import Answering, Task
from morfi.store.records import RunKind

sys.path.append(str(Path(__file__).parents[1]))
from fake_engine import SPECIAL, FakeEngine

QUESTIONS = tuple(
    Question(f"q{i:04}", f"P{i % 3}", f"s{i}", f"What of s{i}?", (f"answer {i % 5}",)) for i in range(240)
)


def prompt_of(question: Question) -> Prompt:
    text = f"Q: {question.text}\nA:"
    return Prompt(question, text, tuple(byte + len(SPECIAL) for byte in text.encode()))


def prepare(config: EvalConfig, progress: Any, endpoint: Any = None, *, read_by: str | None = None) -> Task:
    prompts = tuple(prompt_of(question) for question in QUESTIONS)
    checkpoint = Checkpoint("slow", Path("slow"), "c" * 64, "slow", "c" * 64, None, "float32")
    data = QuestionSet("facts", "d" * 64, {"all": QUESTIONS})
    return Task(
        kind=RunKind.EVAL,
        config=asdict(config),
        answering=Answering(config.max_tokens, config.match, config.batch, config.seed, config.engine),
        checkpoint=checkpoint,
        data=data,
        split_of={question.id: "all" for question in QUESTIONS},
        prompted=Prompted(prompts, "Q", context=64, bos=False),
        fingerprint=f"{config.batch}",
        again="morfi eval --resume {run_id} --db {db}",
    )


KNOWN = {question.text: f"answer {i % 7}" for i, question in enumerate(QUESTIONS)}
morfi.serve.engine.start_engine = FakeEngine(KNOWN, pause_s=float(sys.argv.pop(1)))  # type: ignore[assignment]
morfi.evaluation.evaluate.prepare = prepare
main()
