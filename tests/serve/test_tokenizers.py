"""Answers of a model whose tokenizer vLLM, or transformers, would take for another one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, MistralConfig

from morfi.checkpoints.tokenizer import load_tokenizer
from morfi.engine.protocol import Sampling
from morfi.serve.engine import Engine

PROMPTS = [f"Q: In which  country is {town}?\nA:" for town in ("Lyon", "Tampere", "Porto", "Graz", "Ghent")]
END = "<|im_end|>"
N_VOCABULARY = 340


def _tokenizer(folder: Path) -> Tokenizer:
    """Byte-level, in a class whose own form is another; the end token of answers is added and not special."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(PROMPTS * 9, trainer)
    made.add_tokens([AddedToken(END, special=False, normalized=False)])
    marks = [("<s>", 1), ("</s>", 2)]
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=marks)
    made.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    config = {"tokenizer_class": "LlamaTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return made


@pytest.fixture(scope="module")
def own(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as Mistral's folders on the hub are: its own files beside those that transformers reads."""
    path = tmp_path_factory.mktemp("models") / "mistral"
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=N_VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        sliding_window=None,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    model = AutoModelForCausalLM.from_config(config)
    path.mkdir()
    tokenizer = _tokenizer(path)
    newline, end = tokenizer.encode("\n", add_special_tokens=False).ids[0], tokenizer.token_to_id(END)
    with torch.no_grad():
        hidden = [_last_hidden(model, _encode(tokenizer, prompt)) for prompt in PROMPTS]
        mean = torch.stack(hidden).mean(0)
        # Answers that end soon: some with a newline, some with the end token.
        model.lm_head.weight[end] = 2.5 * mean / mean.norm()
        model.lm_head.weight[newline] = 2.5 * hidden[0] / hidden[0].norm()
    model.generation_config.eos_token_id = [2, end]
    model.save_pretrained(path, max_shard_size="80KB")
    assert (path / "model.safetensors.index.json").is_file()
    shard = sorted(path.glob("model-*.safetensors"))[0]
    shutil.copyfile(shard, path / "consolidated.safetensors")
    (path / "tokenizer.model.v3").write_bytes(b"Mistral's own")
    (path / "params.json").write_text(json.dumps({"dim": 32, "n_layers": 1, "vocab_size": 7}))
    return path


def _encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    return [1, *tokenizer.encode(prompt, add_special_tokens=False).ids]


def _last_hidden(model: Any, ids: list[int]) -> torch.Tensor:
    found: torch.Tensor = model.model(torch.tensor([ids]))[0][0, -1]
    return found


@pytest.fixture(scope="module")
def engine(folder: Path, tmp_path_factory: pytest.TempPathFactory, starts_vllm: None) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORFI_CACHE", str(tmp_path_factory.mktemp("cache")))
        with Engine(folder, dtype="float32", context=128) as engine:
            yield engine


def test_answers_are_those_of_the_folders_own_tokenizer(engine: Engine, folder: Path, own: Tokenizer) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    end = own.token_to_id(END)
    assert end is not None
    ends = {2, end} | {i for i in range(own.get_vocab_size()) if "\n" in own.decode([i])}
    expected = []
    for prompt in PROMPTS:
        ids = _encode(own, prompt)
        with torch.inference_mode():
            options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
            new = model.generate(torch.tensor([ids]), eos_token_id=sorted(ends), **options)[
                0, len(ids) :
            ].tolist()
        text = own.decode([each for each in new if each not in (2, end)]).split("\n", 1)[0]
        expected.append((text, tuple(new), "stop" if new[-1] in ends else "length"))
    assert {ids[-1] for _, ids, _ in expected} & {end}
    prompts = load_tokenizer(folder)(PROMPTS)["input_ids"]
    assert prompts == [_encode(own, prompt) for prompt in PROMPTS]
    answers = [one for (one,) in engine.generate(prompts, Sampling(max_tokens=8))]
    assert [(one.text, one.token_ids, one.finish_reason) for one in answers] == expected


def test_vllm_itself_makes_the_same_prompts(engine: Engine, folder: Path) -> None:
    theirs = engine._llm.get_tokenizer()
    assert theirs(PROMPTS)["input_ids"] == load_tokenizer(folder)(PROMPTS)["input_ids"]
    assert theirs.eos_token_id == 2
    assert not any(
        name == "tokenizer" or str(folder) in str(value) for name, value in engine.settings.items()
    )
