"""A tiny random model that vLLM serves, and questions for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from random_model import random_model

from morfi.evaluation.config import EvalConfig
from morfi.questions.question import Question

TAG = "MORFI_TEST"


@pytest.fixture(scope="module")
def tag(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Stands in the environment of every process that a test starts; they have a cache of their own."""
    folder = tmp_path_factory.mktemp("fleet")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MORFI_CACHE", str(folder / "cache"))
        patched.setenv(TAG, str(folder))
        yield f"{TAG}={folder}"


@pytest.fixture(scope="module")
def served_model(
    tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., Any], tag: str
) -> Path:
    """A folder; only to be read."""
    return random_model(tmp_path_factory.mktemp("model"), "LlamaForCausalLM", 2, make_tokenizer)


@pytest.fixture(scope="module")
def served_config(
    tmp_path_factory: pytest.TempPathFactory, served_model: Path, write_questions: Callable[..., Path]
) -> EvalConfig:
    """An evaluation of a hundred questions, four in a batch."""
    asked = [Question(f"q{i}", "P17", f"T{i}", f"Where is T{i * 7919 % 997}?", ("Peru",)) for i in range(100)]
    data = write_questions(tmp_path_factory.mktemp("data") / "asked.jsonl", {"all": asked})
    return EvalConfig(str(served_model), data=str(data), shots=0, batch=4, dtype="float32")
