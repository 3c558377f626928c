from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from morfi.checkpoints.model_files import open_model
from morfi.errors import InputError
from morfi.files import canonical_sha256

DIMENSIONS = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama")
    AutoModelForCausalLM.from_config(LlamaConfig(**DIMENSIONS)).save_pretrained(path)
    return path


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change(model: Path, **settings: Any) -> Path:
    path = model / "config.json"
    config = {**json.loads(path.read_text()), **settings}
    removed = {key for key, value in settings.items() if value is None}
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in removed}))
    return model


def test_a_saved_model_opens_with_its_family_dtype_and_embedding(model: Path) -> None:
    files = open_model(model)
    assert (files.model_type, files.dtype, files.tied) == ("llama", "float32", False)
    assert files.input_embedding == "model.embed_tokens.weight"


def test_tying_follows_the_architectures_default(model: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(Gemma2Config(**DIMENSIONS)).save_pretrained(tmp_path / "gemma")
    assert open_model(change(tmp_path / "gemma", tie_word_embeddings=None)).tied
    assert not open_model(change(model, tie_word_embeddings=None)).tied


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": None, "torch_dtype": "float16"}, "float16"),
        ({"dtype": None}, "float32"),
    ],
)
def test_the_dtype_is_the_configurations_or_that_of_the_weights(
    model: Path, settings: Any, dtype: str
) -> None:
    path = change(model, **settings) / "config.json"
    files = replace(open_model(model), config=json.loads(path.read_text()))
    assert files.dtype == dtype


def test_a_dtype_that_cannot_be_served_is_refused(model: Path) -> None:
    files = open_model(model)
    with pytest.raises(InputError, match=r'dtype "float64".*--dtype'):
        _ = replace(files, config={**files.config, "dtype": "float64"}).dtype


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"architectures": ["LlamaForCausalML"]}, 'Did you mean "LlamaForCausalLM"'),
        ({"architectures": ["BertForMaskedLM"]}, "not a causal language model"),
        ({"architectures": None}, "architectures = None"),
        ({"architectures": []}, "expected one"),
        ({"architectures": [["x"]]}, "expected one"),
        ({"model_type": None}, 'expected "llama"'),
        ({"model_type": "gemma2"}, 'expected "llama"'),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}, "run code from the checkpoint"),
        ({"hidden_size": "wide"}, "not a configuration that transformers accepts"),
    ],
)
def test_a_configuration_that_cannot_be_served_is_refused(model: Path, settings: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        open_model(change(model, **settings))
    assert said in str(caught.value)
    assert "config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_named_by_the_tokenizer_is_refused(model: Path) -> None:
    (model / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.T", null]}}')
    with pytest.raises(InputError, match=r"tokenizer_config\.json asks to run code"):
        open_model(model)


def test_missing_and_empty_folders_and_files_are_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is an empty folder"):
        open_model(tmp_path / "empty")
    with pytest.raises(InputError, match="is not a folder"):
        open_model(tmp_path / "gone")
    (model / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json"):
        open_model(model)


@pytest.mark.parametrize("content", ["", "[]", "{nope"])
def test_a_broken_configuration_file_is_refused(model: Path, content: str) -> None:
    (model / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        open_model(model)


def test_an_untied_model_without_an_output_head_is_refused(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(InputError, match=r"lack lm_head\.weight"):
        open_model(model)
    assert open_model(change(model, tie_word_embeddings=True)).tied


def test_the_hash_ignores_place_sharding_and_bookkeeping(model: Path, tmp_path: Path) -> None:
    one = open_model(model).sha256()
    moved = Path(shutil.copytree(model, tmp_path / "elsewhere"))
    assert open_model(change(moved, transformers_version="4.0", _name_or_path="x")).sha256() == one
    sharded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    sharded.save_pretrained(tmp_path / "sharded", max_shard_size="10KB")
    assert len(open_model(tmp_path / "sharded").weights.shards()) > 1
    assert open_model(tmp_path / "sharded").sha256() == one


@pytest.mark.parametrize(
    "settings", [{"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rms_norm_eps": 1e-3}]
)
def test_the_hash_sees_what_changes_the_function(model: Path, settings: Any) -> None:
    one = open_model(model).sha256()
    assert open_model(change(model, **settings)).sha256() != one


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_the_hash_sees_tokenizer_and_generation_files(model: Path, name: str) -> None:
    one = open_model(model).sha256()
    (model / name).write_text('{"eos_token_id": 7}')
    assert open_model(model).sha256() != one


def test_canonical_json_has_no_order() -> None:
    assert (
        canonical_sha256({"a": 1, "b": [2]})
        == canonical_sha256({"b": [2], "a": 1})
        != canonical_sha256({"a": 1})
    )
