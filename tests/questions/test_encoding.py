"""Prompts that share a beginning get the tokens that the tokenizer gives each of them as a whole."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from morfi.errors import InputError
from morfi.questions import encoding
from morfi.questions.encoding import encode, n_tokens

TEXTS = [
    "Q: In which country is Lyon?\nA: France\n\nQ: Where is  Łódź?\nA:",
    "  the\n\n\nof\t\tQ: 1234 \n Q: A: B:\n\n",
]
LLAMA3 = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def made(pieces: Any, normalizer: Any = None, special: tuple[str, str] = ("<s> $A", "<s>")) -> Any:
    fast = Tokenizer(models.BPE(unk_token="<unk>"))
    fast.pre_tokenizer = pieces
    if normalizer is not None:
        fast.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    fast.train_from_iterator(TEXTS * 20, trainer)
    ids = [(token, fast.token_to_id(token)) for token in ("<s>", "</s>") if token in special[0]]
    fast.post_processor = processors.TemplateProcessing(single=special[0], special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
KINDS: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: made(byte_level, special=("$A", "")),
    "gpt-2 with BOS and EOS": lambda: made(byte_level, special=("<s> $A </s>", "")),
    "llama-3": lambda: made(
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    ),
    "prefix space": lambda: made(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "metaspace": lambda: made(pre_tokenizers.Metaspace()),
    "lines": lambda: made(pre_tokenizers.Split("\n", "merged_with_next"), normalizers.NFKC()),
    "no pieces": lambda: made(None, normalizers.Replace(" ", "▁")),
}
words = st.text(st.sampled_from("Qab: \nŁ1?é\u0301▁"), max_size=12)


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return KINDS[request.param]()


@settings(max_examples=12, deadline=None)
@given(
    heads=st.lists(words.map(lambda text: f"Q: {text}\nA: {text}\n\n") | words, min_size=1, max_size=2),
    tails=st.lists(words.map("Q: {}\nA:".format) | words, min_size=1, max_size=9),
    special=st.booleans(),
)
def test_any_texts_get_the_tokens_of_the_whole(
    tokenizer: Any, heads: list[str], tails: list[str], special: bool
) -> None:
    pairs = [(head, tail) for tail in tails * (2 + encoding._TRIED // len(tails)) for head in heads]
    found = encode([head for head, _ in pairs], [tail for _, tail in pairs], tokenizer, special=special)
    whole = tokenizer([head + tail for head, tail in pairs], add_special_tokens=special)["input_ids"]
    assert found == [tuple(ids) for ids in whole]


@settings(max_examples=8, deadline=None)
@given(texts=st.lists(words, min_size=1, max_size=20))
def test_texts_are_as_long_as_the_tokenizer_says(tokenizer: Any, texts: list[str]) -> None:
    tokenizer.backend_tokenizer.enable_truncation(2)
    whole = tokenizer(texts, add_special_tokens=False)["input_ids"]
    tokenizer.backend_tokenizer.enable_truncation(2)
    assert n_tokens(texts, tokenizer) == [len(ids) for ids in whole]


def test_a_shared_beginning_is_encoded_once_where_pieces_end_there(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = KINDS["llama-3"]()
    head, tails = "Q: Where is Lyon?\nA: France\n\n" * 4, [f"Q: Where is {i}?\nA:" for i in range(9000)]
    seen: list[int] = []
    n_whole = 0
    called = encoding._Encoder._called

    def counted(self: Any, texts: Any, special: bool) -> Any:
        nonlocal n_whole
        n_whole += len(texts)
        return called(self, texts, special)

    monkeypatch.setattr(encoding._Encoder, "_called", counted)
    found = encode([head] * len(tails), tails, tokenizer, special=True, on_part=seen.append)
    assert found[-1] == tuple(tokenizer(head + tails[-1])["input_ids"])
    assert n_whole <= encoding._TRIED + 2
    assert (sum(seen), len(seen)) == (len(tails), 3)


def test_nothing_is_nothing() -> None:
    assert encode([], [], KINDS["gpt-2"](), special=True) == []


@pytest.mark.slow
def test_many_questions_are_prepared_quickly_in_little_memory(
    tmp_path: Path, tiny_model: Path, isolated_cache: Path
) -> None:
    """Beside the tokenizer's own time for as many texts, both in processor time of one process."""
    path = tmp_path / "q.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(176_560):
            subject = f"Subject number {i}"
            row = {"id": f"q{i}", "relation": f"P{i % 24}", "subject": subject, "answers": [f"Answer {i}"]}
            file.write(json.dumps({**row, "question": f"In which country is {subject} to be found?"}) + "\n")
    code = """
import sys, time
from pathlib import Path
from morfi.evaluation.config import EvalConfig
from morfi.evaluation.evaluate import prepare
class Said:
    def phase(self, text): print(text, flush=True)
import torch, transformers
begun = time.process_time()
task = prepare(EvalConfig(sys.argv[1], data=sys.argv[2]), Said())
took = time.process_time() - begun
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
texts = tokenizer.batch_decode([prompt.token_ids for prompt in task.prompts[:4000]])
begun = time.process_time()
tokenizer(texts, add_special_tokens=False)
took /= (time.process_time() - begun) * len(task.prompts) / len(texts)
# Not ru_maxrss: a child process starts with its parent's.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(len(task.prompts), took, int(status["VmHWM"].split()[0]) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, tiny_model, path],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *said, last = done.stdout.splitlines()
    n, times, megabytes = map(float, last.split())
    assert n > 176_000
    assert any("prompts" in line for line in said)
    assert times < 4
    # Single bytes are tokens here, some five times as many as of a real tokenizer.
    assert megabytes < 2500


def test_one_text_that_begins_otherwise_has_its_own_tokens() -> None:
    tokenizer = KINDS["gpt-2"]()
    heads, tails = ["Q: a\n\n"] * 60, [*["Q: b"] * 58, " \n\nb", "Q: b"]
    whole = tokenizer([head + tail for head, tail in zip(heads, tails, strict=True)])["input_ids"]
    assert encode(heads, tails, tokenizer, special=True) == [tuple(ids) for ids in whole]


def test_a_text_that_has_no_tokens_is_refused() -> None:
    fast = Tokenizer(models.WordLevel({"Lyon": 0}, unk_token=None))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast)
    assert encode(["Lyon "], ["Lyon"], tokenizer, special=False) == [(0, 0)]
    with pytest.raises(InputError, match="cannot write all of the prompts"):
        encode(["Lyon "], ["Paris"], tokenizer, special=False)
