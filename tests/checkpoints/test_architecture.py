"""Every tensor of the files is a parameter of the architecture, once, and every parameter has one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from morfi.checkpoints.model_files import context_limit, open_model
from morfi.errors import InputError

COMMON = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA_LIKE = {**COMMON, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**LLAMA_LIKE, "tie_word_embeddings": False},
    "gemma2": {**LLAMA_LIKE, "query_pre_attn_scalar": 8},
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": {**COMMON, "intermediate_size": 48, "tie_word_embeddings": False},
    "opt": {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mixtral": {**LLAMA_LIKE, "num_local_experts": 4},
}
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("families")

    def saved(family: str) -> Path:
        if not (root / family).is_dir():
            torch.manual_seed(0)
            config = AutoConfig.for_model(family, **FAMILIES[family])
            AutoModelForCausalLM.from_config(config).save_pretrained(root / family)
        return root / family

    return saved


@pytest.fixture
def made(originals: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a family's folder, its tensors changed by a function."""

    def make(family: str, change: Callable[[Tensors], Any] = lambda tensors: None, **settings: Any) -> Path:
        folder = Path(
            shutil.copytree(originals(family), tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}")
        )
        tensors = load_file(folder / "model.safetensors")
        save_file(change(tensors) or tensors, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **settings}))
        return folder

    return make


EMBEDDINGS = {
    "llama": ("model.embed_tokens.weight", "lm_head.weight", False),
    "gemma2": ("model.embed_tokens.weight", "lm_head.weight", True),
    "gpt2": ("transformer.wte.weight", "lm_head.weight", True),
    "gpt_neox": ("gpt_neox.embed_in.weight", "embed_out.weight", False),
    "opt": ("model.decoder.embed_tokens.weight", "lm_head.weight", True),
    "bloom": ("transformer.word_embeddings.weight", "lm_head.weight", True),
    "mixtral": ("model.embed_tokens.weight", "lm_head.weight", False),
}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_embedding_head_and_tie_are_the_architectures_own(family: str, made: Callable[..., Path]) -> None:
    model = open_model(made(family))
    assert (model.input_embedding, model.output_head, model.tied) == EMBEDDINGS[family]


def test_names_without_the_models_prefix_are_those_of_the_hubs_older_files(made: Callable[..., Path]) -> None:
    folder = made("gpt2", lambda t: {name.removeprefix("transformer."): x for name, x in t.items()})
    assert open_model(folder).input_embedding == "wte.weight"
    assert open_model(folder).is_conv1d("h.0.attn.c_attn.weight")
    assert not open_model(folder).is_conv1d("wte.weight")


@pytest.mark.parametrize("family", list(FAMILIES))
def test_no_tensor_can_be_taken_away(family: str, originals: Callable[[str], Path], made: Any) -> None:
    names = sorted(load_file(originals(family) / "model.safetensors"))
    for gone in names:
        if ".1." in gone or ("expert" in gone and ".3." not in gone):
            continue  # a layer and an expert are as good as any other
        with pytest.raises(InputError, match=r"the weights (lack|give)|do not fit together") as caught:
            open_model(made(family, lambda t, gone=gone: {n: x for n, x in t.items() if n != gone}))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(48, 32)}), "has no place for"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}), "q_proj.bias, which"),
        (lambda t: t.update({"score.weight": torch.zeros(2, 32)}), "score.weight, which LlamaForCausalLM"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(0)}), r"model.norm.weight the shape [0]"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(63, 32)}), "lm_head.weight the shape [63, 32]"),
        (lambda t: t.update({"norm.weight": torch.zeros(32)}), "has one place for them"),
    ],
)
def test_what_has_no_place_is_refused_by_name(change: Any, said: str, made: Callable[..., Path]) -> None:
    with pytest.raises(InputError) as caught:
        open_model(made("llama", change))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tables_that_older_versions_saved_are_no_weights(made: Callable[..., Path]) -> None:
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    assert not open_model(made("llama", lambda t: t.update(table))).tied
    mask = {
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 8, 8),
        "gpt_neox.layers.0.attention.masked_bias": torch.tensor(-1e9),
    }
    assert open_model(made("gpt_neox", lambda t: t.update(mask))).output_head == "embed_out.weight"


def test_a_head_beside_a_tie_counts_by_its_values(made: Callable[..., Path]) -> None:
    def with_head(values: Callable[[torch.Tensor], torch.Tensor]) -> Path:
        return made(
            "llama",
            lambda t: t.update({"lm_head.weight": values(t["model.embed_tokens.weight"]).clone()}),
            tie_word_embeddings=True,
        )

    assert open_model(with_head(lambda weight: weight)).tied
    assert not open_model(with_head(lambda weight: weight + 1)).tied


def test_a_head_that_vllm_would_leave_out_is_refused(made: Callable[..., Path]) -> None:
    own = {"lm_head.weight": torch.ones(64, 32)}
    for settings in ({}, {"tie_word_embeddings": False}):
        with pytest.raises(InputError, match="output head of its own, and vLLM serves a gemma2 model"):
            open_model(made("gemma2", lambda t: t.update(own), **settings))


def test_a_configuration_that_no_model_can_be_built_from_is_refused(made: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=r"config\.json.*gives no OPTForCausalLM"):
        open_model(made("opt", num_attention_heads=5))


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "fp8", "activation_scheme": "dynamic"},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
    ],
)
def test_a_quantised_model_is_refused_by_its_method(settings: Any, made: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match=rf"quantised \({settings['quant_method']}\)"):
        open_model(made("llama", quantization_config=settings))


@pytest.mark.parametrize(
    ("family", "settings", "limit"),
    [
        ("llama", {"max_position_embeddings": 300}, 300),
        ("gpt2", {}, 64),
        ("bloom", {"seq_length": 200}, 200),
        ("bloom", {}, None),
        ("llama", {"max_position_embeddings": 300, "model_max_length": 100}, 100),
    ],
)
def test_the_context_is_the_lowest_limit_by_any_name(
    family: str, settings: Any, limit: int | None, made: Callable[..., Path]
) -> None:
    assert context_limit(made(family, **settings)) == limit
