"""Checkpoints and question files that cannot be used are refused, and nothing is left."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import Ended, files_under, refused
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM


def remove_folder(model: Path) -> None:
    shutil.rmtree(model)


def empty_folder(model: Path) -> None:
    shutil.rmtree(model)
    model.mkdir()


def a_file(model: Path) -> None:
    shutil.rmtree(model)
    model.touch()


def no_config(model: Path) -> None:
    (model / "config.json").unlink()


def broken_config(model: Path) -> None:
    (model / "config.json").write_text("{")


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def truncated_weights(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def truncated_header(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def empty_weights(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"")


def corrupt_header(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"dtype"', b'"dtyqe"', 1))


def with_value(value: float) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        tensors["model.norm.weight"][3] = value
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})

    return change


def pickled_weights(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def own_code(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "model.Model"}
    (model / "config.json").write_text(json.dumps(config))


def no_tokenizer(model: Path) -> None:
    for path in model.glob("tokenizer*"):
        path.unlink()


def broken_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text('{"version": ')


@pytest.mark.parametrize(
    ("break_it", "parts"),
    [
        (remove_folder, ("there is no folder",)),
        (empty_folder, ("is an empty folder; expected",)),
        (a_file, ("is a file, expected",)),
        (no_config, ("no config.json",)),
        (broken_config, ("config.json is not valid JSON",)),
        (no_weights, ("holds no weights, expected model.safetensors",)),
        (truncated_weights, ("model.safetensors is not a whole safetensors file",)),
        (truncated_header, ("model.safetensors is not a whole safetensors file",)),
        (empty_weights, ("model.safetensors is not a whole safetensors file",)),
        (corrupt_header, ("model.safetensors is not a whole safetensors file",)),
        (with_value(float("nan")), ("model.norm.weight holds NaN",)),
        (with_value(float("inf")), ("model.norm.weight holds NaN or infinity",)),
        (pickled_weights, ("pytorch_model.bin holds pickled weights",)),
        (own_code, ("auto_map",)),
        (no_tokenizer, ("the tokenizer in",)),
        (broken_tokenizer, ("the tokenizer in",)),
    ],
)
def test_a_checkpoint_that_cannot_be_served_is_refused_and_nothing_is_left(
    *,
    ask: Callable[..., Ended],
    tiny_model: Path,
    tmp_path: Path,
    isolated_cache: Path,
    break_it: Callable[[Path], None],
    parts: tuple[str, ...],
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    break_it(model)
    refused(ask(ckpt=model), str(model), *parts)
    assert files_under(tmp_path / "here", isolated_cache) == {}


@pytest.mark.parametrize(
    ("ckpt", "parts"),
    [
        ("smolm2", ("smolm2", 'Did you mean "smollm2"?')),
        ("", ("--ckpt is empty",)),
        ("./none", ("./none",)),
    ],
)
def test_an_unknown_checkpoint_is_refused(
    ask: Callable[..., Ended], ckpt: str, parts: tuple[str, ...]
) -> None:
    refused(ask(ckpt=ckpt), *parts)
    assert files_under(Path.cwd()) == {}


@pytest.mark.parametrize("change", [{"hidden_size": 32}, {"vocab_size": 300}, {"num_hidden_layers": 3}])
def test_an_adapter_of_another_base_is_refused_and_no_merged_model_is_left(
    ask: Callable[..., Ended],
    tiny_model: Path,
    tmp_path: Path,
    isolated_cache: Path,
    change: dict[str, int],
) -> None:
    size = {**json.loads((tiny_model / "config.json").read_text()), **change, "head_dim": None}
    other = LlamaForCausalLM(LlamaConfig(**size))
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    get_peft_model(other, config).save_pretrained(tmp_path / "adapter")
    refused(ask("--base", tiny_model, ckpt=tmp_path / "adapter"), "adapter")
    assert files_under(tmp_path / "here", isolated_cache) == {}


GOOD = {"id": "a", "relation": "P17", "subject": "s", "question": "Where?", "answers": ["x"]}
LINE = json.dumps(GOOD).encode()


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ("holds no questions",)),
        (LINE + b'\n{"id": "b", ', ("line 2", "not valid JSON")),
        (LINE + b"\n" + LINE, ("line 2", "taken by line 1")),
        (json.dumps({**GOOD, "answers": []}).encode(), ("line 1", '"answers" is []')),
        (json.dumps({**GOOD, "answers": "x"}).encode(), ("line 1", '"answers" is "x"')),
        (json.dumps({**GOOD, "question": 7}).encode(), ("line 1", '"question" is 7')),
        (json.dumps({**GOOD, "split": "tset"}).encode(), ("line 1", '"tset"')),
        (LINE + b"\n[1]", ("line 2", "expected a JSON object")),
        (b"[1]", ("entry 1", "expected a JSON object")),
        (LINE.replace(b"Where", b"Wh\xe9re"), ("line 1", "not UTF-8")),
        (gzip.compress(LINE * 99)[:-9], ("gzip data cut short",)),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_a_question_file_with_a_fault_is_refused_with_its_line(
    ask: Callable[..., Ended], tmp_path: Path, isolated_cache: Path, content: bytes, parts: tuple[str, ...]
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    refused(ask(data=path), str(path), *parts)
    assert files_under(tmp_path / "here", isolated_cache) == {}
