"""Shared by the training tests: tiny models of three architectures, facts, and one call that trains."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from morfi.questions.question import Question
from morfi.questions.sets import question_set
from morfi.store.records import CheckpointRow, EpochRow
from morfi.training import TrainingData, prepare_training, run_training, train_config
from morfi.training.plan import Mixture, TrainingTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session", autouse=True)
def settled_heap() -> Iterator[None]:
    """Takes what the libraries hold out of garbage collection, which every training does in full."""
    import morfi.training.trainer  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_models(
    tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> dict[str, Path]:
    """Folders of random models with the byte tokenizer, by architecture; only to be read."""
    import torch
    from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, MistralConfig

    configs = {
        "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
        # Caps so low that leaving them out shows.
        "gemma2": Gemma2Config(
            **SIZES,
            query_pre_attn_scalar=16,
            sliding_window=8,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=3.0,
        ),
        "mistral": MistralConfig(**SIZES, sliding_window=8, tie_word_embeddings=False),
    }
    folders = {}
    for name, config in configs.items():
        torch.manual_seed(1)
        folders[name] = tmp_path_factory.mktemp("models") / name
        AutoModelForCausalLM.from_config(config).save_pretrained(folders[name])
        make_tokenizer().save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def facts() -> tuple[Question, ...]:
    """Eleven questions of two relations, of different lengths."""
    towns = ("Aa", "Bebe", "Cici", "Do", "Ee", "Foofoo", "Gi", "Hoho", "Iiiii", "Jo", "Ka")
    return tuple(
        Question(f"q{i}", f"P{i % 2}", town, f"Where is {town}?", (("France", "Peru", "Chad")[i % 3],))
        for i, town in enumerate(towns)
    )


@dataclass
class Rows:
    """The rows of a run, kept in memory, and a progress that counts."""

    epochs: list[EpochRow] = field(default_factory=list)
    checkpoints: list[CheckpointRow] = field(default_factory=list)
    phases: list[str] = field(default_factory=list)
    n_total: int = 0
    n_before: int = 0
    n_done: int = 0

    def record(self, row: EpochRow | CheckpointRow) -> None:
        if isinstance(row, EpochRow):
            self.epochs.append(row)
        else:
            self.checkpoints.append(row)

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def start(self, n_total: int, n_done: int) -> None:
        self.n_total, self.n_before, self.n_done = n_total, n_done, n_done

    def advance(self, n: int) -> None:
        self.n_done += n


@dataclass
class Trained:
    """The result of a run: its rows by name of setting, and all that was recorded."""

    rows: list[CheckpointRow]
    recorded: Rows

    @property
    def sha256s(self) -> dict[tuple[int, int, str], str]:
        """The adapters' hashes by level, seed and epoch setting."""
        return {(row.level, row.seed, row.epoch_setting): row.adapter_sha256 for row in self.rows}


@dataclass
class TrainTiny:
    """Prepares and runs trainings of a tiny model on a CPU in float32."""

    model: Path
    facts: tuple[Question, ...]

    def data(
        self, levels: Sequence[int] = (0,), questions: Sequence[Question] | None = None, n_dev: int = 3
    ) -> TrainingData:
        """Mixtures of `questions` (the facts), in another order for each level; dev is the first of them."""
        given = tuple(self.facts if questions is None else questions)
        mixtures = tuple(Mixture(level, given[i:] + given[:i]) for i, level in enumerate(levels))
        sha256 = question_set("facts", {"train": given}).sha256
        return TrainingData("facts", sha256, mixtures, given[:n_dev])

    def prepare(self, data: TrainingData | None = None, **given: Any) -> TrainingTask:
        """A task of few steps."""
        small = {"model": str(self.model), "rank": 2, "alpha": 4.0, "lr": 0.01, "batch": 4, "micro_batch": 2}
        small |= {"warmup": 0, "epochs": (1, 2), "gradient_checkpointing": False, "max_tokens": 8}
        return prepare_training(train_config(small | given), data or self.data(), Rows())

    def __call__(self, folder: Path, data: TrainingData | None = None, **given: Any) -> Trained:
        """Trains into `folder`."""
        recorded = Rows()
        rows = run_training(self.prepare(data, **given), folder, recorded.record, recorded, attempt=1)
        return Trained(rows, recorded)


@pytest.fixture
def train_tiny(tiny_models: dict[str, Path], facts: tuple[Question, ...], isolated_cache: Path) -> TrainTiny:
    """Trains the tiny Llama."""
    return TrainTiny(tiny_models["llama"], facts)
