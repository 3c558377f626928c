"""Shared: a tiny random model with a real tokenizer, a question file, and an engine that needs no vLLM."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from morfi.types import Completion, Question, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from morfi.checkpoints import Checkpoint

CONTEXT = 512
SPECIAL = ("<s>", "</s>", "<unk>")


def pytest_configure() -> None:
    """Lets the tests send Ctrl-C where a shell started them in the background, with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def isolated_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no database named by the environment, whatever the user has set."""
    monkeypatch.setenv("MORFI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MORFI_DB", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Makes a tokenizer of single bytes: byte b is token b + 3, after the special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    def make(*, has_bos: bool = True, adds_bos: bool = True, chat_template: str | None = None) -> Any:
        vocabulary = {token: index for index, token in enumerate(SPECIAL)}
        vocabulary |= {f"<0x{byte:02X}>": byte + len(SPECIAL) for byte in range(256)}
        fast = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
        fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        fast.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
        if adds_bos:
            fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        return PreTrainedTokenizerFast(
            tokenizer_object=fast,
            bos_token="<s>" if has_bos else None,
            eos_token="</s>",
            unk_token="<unk>",
            chat_template=chat_template,
        )

    return make


@pytest.fixture(scope="session")
def tiny_model(
    tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> Path:
    """A folder with a random Llama of one layer and a context of 512, and its tokenizer; only to be read."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + 256,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
    )
    path = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def _questions() -> dict[str, list[Question]]:
    countries, capitals = ("France", "Côte d'Ivoire", "Peru"), ("Paris", "Yamoussoukro", "Lima")
    splits: dict[str, list[Question]] = {"train": [], "dev": [], "test": []}
    for split, n in (("train", 6), ("dev", 5), ("test", 10)):
        for i in range(n):
            town, land = f"{split.title()}ville {i}", f"{split.title()}land {i}"
            where, capital = countries[i % 3 if i < 7 else 0], capitals[i % 3]
            splits[split] += [
                Question(f"{split}-P17-{i}", "P17", town, f"Which country is {town} in?", (where, "Earth")),
                Question(f"{split}-P36-{i}", "P36", land, f"What is the capital of {land}?", (capital,)),
            ]
    return splits


@pytest.fixture(scope="session")
def questions() -> Mapping[str, Sequence[Question]]:
    """Two relations: 12 questions in train, 10 in dev, 20 in test; no subject stands in two splits."""
    return _questions()


@pytest.fixture(scope="session")
def write_questions() -> Callable[..., Path]:
    """Writes questions by split as a JSONL file and returns its path."""

    def write(path: Path, splits: Mapping[str, Sequence[Question]]) -> Path:
        rows = [
            {"id": q.id, "relation": q.relation, "subject": q.subject, "question": q.text}
            | {"answers": list(q.answers)}
            | ({} if split == "all" else {"split": split})
            for split, asked in splits.items()
            for q in asked
        ]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory, write_questions: Callable[..., Path]) -> Path:
    """The file of `questions`; only to be read."""
    return write_questions(tmp_path_factory.mktemp("data") / "facts.jsonl", _questions())


@dataclass
class FakeServing:
    """Starts engines that know some answers; one that is told to stops after so many batches.

    The engine reads the last question off the prompt, so its answer depends on nothing else, as a greedy
    model's does. `batches` holds the questions of each batch that was answered.
    """

    known: Mapping[str, str]
    stop_after: int | None = None
    error: BaseException = field(default_factory=lambda: RuntimeError("the engine died"))
    n_lost: int = 0  # answers missing from each batch
    starts: list[dict[str, Any]] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)
    n_resets: int = 0
    settings: Mapping[str, Any] = field(default_factory=lambda: {"block_size": 32})
    device: str = "fake"

    @contextlib.contextmanager
    def __call__(self, checkpoint: Checkpoint, **options: Any) -> Iterator[FakeServing]:
        self.starts.append({"checkpoint": checkpoint, **options})
        yield self

    def reset_prefix_cache(self) -> None:
        self.n_resets += 1

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        on_finished: Callable[[int], None] | None = None,
    ) -> list[list[Completion]]:
        if self.stop_after is not None and len(self.batches) >= self.stop_after:
            raise self.error
        asked = [_last_question(prompt) for prompt in prompts]
        self.batches.append(asked)
        if on_finished is not None:
            on_finished(len(prompts))
        answers = [self.known.get(question, "no idea") for question in asked]
        completions = [
            [Completion(f" {answer} ", tuple(answer.encode())[: sampling.max_tokens], "stop", 5)]
            for answer in answers
        ]
        return completions[: len(completions) - self.n_lost]


def _last_question(token_ids: Sequence[int]) -> str:
    text = bytes(i - len(SPECIAL) for i in token_ids if i >= len(SPECIAL)).decode()
    return text.rpartition("Q: ")[2].removesuffix("\nA:")


@pytest.fixture
def serving() -> FakeServing:
    """An engine that knows every second of the test questions."""
    return FakeServing({q.text: q.answers[0] for q in _questions()["test"][::2]})
