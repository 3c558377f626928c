from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, VeloraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
    SiglipVisionConfig,
)

from morfi.checkpoints.adapters import Adapter, load_adapter
from morfi.checkpoints.lora import Merge, merged_tensors
from morfi.checkpoints.merge_plan import plan_merge
from morfi.checkpoints.model_files import open_model
from morfi.checkpoints.weights import write_weights
from morfi.errors import InputError

N_TOKENS = 64
TOKENS = torch.tensor([[3, 1, 4, 15, 9, 2, 6, 5]])
DIMENSIONS = {
    "vocab_size": N_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
CONFIGS = {
    "llama": LlamaConfig(**DIMENSIONS, tie_word_embeddings=False),
    "llama-tied": LlamaConfig(**DIMENSIONS, tie_word_embeddings=True),
    "llama-bias": LlamaConfig(**DIMENSIONS, tie_word_embeddings=False, attention_bias=True),
    "mistral": MistralConfig(**DIMENSIONS, tie_word_embeddings=False, sliding_window=None),
    "gemma2": Gemma2Config(**DIMENSIONS, query_pre_attn_scalar=8),
    "opt": OPTConfig(
        vocab_size=N_TOKENS,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
    "bloom": BloomConfig(vocab_size=N_TOKENS, hidden_size=32, n_layer=2, n_head=4),
    "gpt_neox": GPTNeoXConfig(
        vocab_size=N_TOKENS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    ),
    "mixtral": MixtralConfig(**DIMENSIONS, num_local_experts=4, tie_word_embeddings=False),
    "qwen2_moe": Qwen2MoeConfig(
        **{name: value for name, value in DIMENSIONS.items() if name != "head_dim"},
        num_experts=4,
        moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
    ),
    "qwen3_moe": Qwen3MoeConfig(**DIMENSIONS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24),
    "gpt2": GPT2Config(vocab_size=N_TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=64),
}
HEADS = {"lm_head.weight", "embed_out.weight"}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Form:
    """One way to save an adapter; `tied`: whether the merged model still shares its embedding."""

    name: str
    base: str
    settings: dict[str, Any] = field(default_factory=dict)
    tied: bool = False


FORMS = [
    Form("plain", "llama", {"target_modules": LINEAR}),
    Form("plain mistral", "mistral", {"target_modules": LINEAR}),
    Form("plain gemma2", "gemma2", {"target_modules": LINEAR}, tied=True),
    Form("plain tied", "llama-tied", {"target_modules": ATTENTION}, tied=True),
    Form("alpha of its own", "llama", {"target_modules": ATTENTION, "lora_alpha": 3}),
    Form(
        "rank pattern",
        "llama",
        {"target_modules": ATTENTION, "rank_pattern": {"q_proj": 7, r"layers\.1\..*k_proj": 2}},
    ),
    Form(
        "alpha pattern",
        "llama",
        {"target_modules": ATTENTION, "alpha_pattern": {r"model.layers.0.self_attn.q_proj": 32}},
    ),
    Form("pattern of a part of a name", "llama", {"target_modules": ATTENTION, "rank_pattern": {"proj": 7}}),
    Form("rslora", "llama", {"target_modules": ATTENTION, "use_rslora": True}),
    Form(
        "rslora with patterns",
        "mistral",
        {
            "target_modules": LINEAR,
            "use_rslora": True,
            "rank_pattern": {"q_proj": 9},
            "alpha_pattern": {"v_proj": 5},
        },
    ),
    Form("dora", "llama", {"target_modules": LINEAR, "use_dora": True}),
    Form(
        "dora gemma2", "gemma2", {"target_modules": LINEAR, "use_dora": True, "use_rslora": True}, tied=True
    ),
    Form("dora embedding", "llama", {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True}),
    Form("embedding", "llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    Form("embedding and head", "llama", {"target_modules": ["embed_tokens", "lm_head"], "use_rslora": True}),
    Form("embedding tied", "llama-tied", {"target_modules": ["q_proj", "embed_tokens"]}),
    Form("head tied", "llama-tied", {"target_modules": ["q_proj", "lm_head"]}),
    Form("dora head tied", "llama-tied", {"target_modules": ["lm_head"], "use_dora": True}),
    Form(
        "embedding kept tied",
        "llama-tied",
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
        tied=True,
    ),
    Form(
        "embedding kept tied gemma2",
        "gemma2",
        {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
        tied=True,
    ),
    Form("saved head", "llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    Form("saved head tied", "llama-tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    Form(
        "saved embedding tied",
        "llama-tied",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ),
    Form(
        "saved both tied",
        "llama-tied",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    Form(
        "saved embedding kept tied",
        "llama-tied",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        tied=True,
    ),
    Form("saved norms and mlp", "llama", {"target_modules": ["q_proj"], "modules_to_save": ["norm", "mlp"]}),
    Form("lora bias", "llama-bias", {"target_modules": ATTENTION, "lora_bias": True}),
    Form("all biases", "llama-bias", {"target_modules": ["q_proj"], "bias": "all"}),
    Form("biases of tuned modules", "llama-bias", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    Form("some layers", "llama", {"target_modules": ATTENTION, "layers_to_transform": [1]}),
    Form("tokens", "llama", {"target_modules": ["q_proj"], "trainable_token_indices": [5, 1]}),
    Form(
        "tokens tied",
        "llama-tied",
        {"target_modules": ["q_proj"], "trainable_token_indices": [5, 1]},
        tied=True,
    ),
    Form(
        "tokens of both ends",
        "llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 1], "lm_head": [2]}},
    ),
    Form(
        "tokens of both ends tied, differing",
        "llama-tied",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 1], "lm_head": [2]}},
    ),
    Form(
        "tokens of both ends tied, the same",
        "llama-tied",
        {
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": [5, 1], "lm_head": [5, 1]},
        },
        tied=True,
    ),
    Form(
        "tokens of a tied head",
        "llama-tied",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [2]}},
    ),
    Form(
        "transposed layers",
        "gpt2",
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
        tied=True,
    ),
    Form(
        "transposed dora",
        "gpt2",
        {"target_modules": ["c_proj"], "fan_in_fan_out": True, "use_dora": True},
        tied=True,
    ),
    Form("transposed, not said", "gpt2", {"target_modules": ["c_proj"]}, tied=True),
    Form("gaussian start", "llama", {"target_modules": ATTENTION, "init_lora_weights": "gaussian"}),
    Form("orthogonal start", "llama", {"target_modules": ATTENTION, "init_lora_weights": "orthogonal"}),
    Form("mica start", "llama", {"target_modules": ATTENTION, "init_lora_weights": "mica"}),
    Form("opt embedding", "opt", {"target_modules": ["q_proj", "embed_tokens"]}),
    Form("opt head", "opt", {"target_modules": ["q_proj", "lm_head"]}),
    Form("opt saved embedding", "opt", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    Form("opt plain", "opt", {"target_modules": ["q_proj", "fc1"]}, tied=True),
    Form("bloom embedding", "bloom", {"target_modules": ["query_key_value", "word_embeddings"]}),
    Form("neox", "gpt_neox", {"target_modules": ["query_key_value", "dense_h_to_4h"]}),
    Form("velora", "llama", {"target_modules": ATTENTION, "velora_config": VeloraConfig(num_groups=4)}),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, made = tmp_path_factory.mktemp("bases"), {}

    def base(name: str) -> Path:
        if name not in made:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(CONFIGS[name])
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
            model.save_pretrained(root / name)
            made[name] = root / name
        return made[name]

    return base


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def train(
    base: Path,
    directory: Path,
    *,
    prepare: Callable[[PreTrainedModel], Any] = lambda m: m,
    cls: Any = AutoModelForCausalLM,
    **settings: Any,
) -> Path:
    """Saves an adapter on `base` whose every trainable number has moved at random."""
    model = cls.from_pretrained(base, dtype=torch.float32)
    prepare(model)
    torch.manual_seed(1)
    tuned = get_peft_model(
        model, LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **settings})
    )
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    tuned.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def saved_form(
    bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Form], Path]:
    """The adapter folder of a form, made once for all tests."""
    root = tmp_path_factory.mktemp("forms")
    made: dict[str, Path] = {}

    def saved(form: Form) -> Path:
        if form.name not in made:
            made[form.name] = train(bases(form.base), root / str(len(made)), **form.settings)
        return made[form.name]

    return saved


def trained(base: Path, adapter: Path) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS).logits
    return found


def merge(base: Path, adapter: Path, dtype: str = "float32") -> tuple[Merge, dict[str, torch.Tensor]]:
    files = open_model(base)
    plan = plan_merge(files, load_adapter(adapter), dtype)
    return plan, dict(merged_tensors(files.weights, plan))


def load_merged(
    base: Path, plan: Merge, tensors: dict[str, torch.Tensor], directory: Path
) -> PreTrainedModel:
    directory.mkdir()
    write_weights(directory, tensors.items())
    config = plan.config(json.loads((base / "config.json").read_text()))
    (directory / "config.json").write_text(json.dumps(config))
    return AutoModelForCausalLM.from_pretrained(directory).eval()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_the_merged_model_computes_what_the_adapted_one_did(
    form: Form, bases: Callable[[str], Path], saved_form: Callable[[Form], Path], tmp_path: Path
) -> None:
    base = bases(form.base)
    adapter = saved_form(form)
    plan, tensors = merge(base, adapter)
    merged = load_merged(base, plan, tensors, tmp_path / "merged")
    expected = trained(base, adapter)
    unadapted = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert not torch.allclose(logits(unadapted), logits(expected), atol=1e-2), "the adapter does nothing"
    torch.testing.assert_close(logits(merged), logits(expected), atol=1e-4, rtol=1e-4)
    assert merged.config.tie_word_embeddings is form.tied
    assert any(name in tensors for name in HEADS) is not form.tied


def pefts_merge_is_exact(form: Form) -> bool:
    """Whether merge_and_unload keeps what the adapter was trained to do.

    In place, in a shared parameter, it adds an update of one end to both, and one of both ends twice.
    """
    ends = {"embed_tokens", "word_embeddings", "lm_head"}.intersection(form.settings["target_modules"])
    return not CONFIGS[form.base].tie_word_embeddings or not (ends or "tokens of" in form.name)


COMPARABLE = [form for form in FORMS if pefts_merge_is_exact(form)]


@pytest.mark.parametrize("form", COMPARABLE, ids=lambda form: form.name)
def test_merged_tensors_are_those_of_pefts_own_merge(
    form: Form, bases: Callable[[str], Path], saved_form: Callable[[Form], Path]
) -> None:
    base = bases(form.base)
    adapter = saved_form(form)
    _, tensors = merge(base, adapter)
    expected = trained(base, adapter).merge_and_unload().state_dict()
    # In files GPT-NeoX calls it otherwise.
    expected |= {"embed_out.weight": expected["lm_head.weight"]}
    assert set(expected) - set(tensors) <= HEADS
    for name, tensor in tensors.items():
        # DoRA divides by a norm whose order of summation may differ.
        torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-6 if "dora" in form.name else 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_lower_dtype_is_the_float32_merge_cast_once(
    dtype: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("llama")
    adapter = train(base, tmp_path / "adapter", target_modules=LINEAR)
    _, tensors = merge(base, adapter, dtype)
    _, exact = merge(base, adapter)
    for name, tensor in tensors.items():
        assert torch.equal(tensor.to(getattr(torch, dtype)), exact[name].to(getattr(torch, dtype)))


def test_a_base_in_bfloat16_is_merged_in_float32(bases: Callable[[str], Path], tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(bases("llama"), dtype=torch.bfloat16).save_pretrained(
        tmp_path / "base"
    )
    adapter = train(tmp_path / "base", tmp_path / "adapter", target_modules=["q_proj"])
    _, tensors = merge(tmp_path / "base", adapter, "bfloat16")
    expected = trained(tmp_path / "base", adapter).merge_and_unload().state_dict()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name].to(torch.bfloat16))


def test_a_tensor_that_no_adapter_touches_keeps_its_bits(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("llama")
    _, tensors = merge(base, train(base, tmp_path / "adapter", target_modules=["q_proj"]))
    original = load_file(base / "model.safetensors")
    changed = {name for name in original if not torch.equal(original[name], tensors[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}


def test_merging_streams_from_tensors_in_memory_in_any_order(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("llama-tied")
    files = open_model(base)
    adapter = train(base, tmp_path / "adapter", target_modules=["q_proj", "embed_tokens"])
    plan = plan_merge(files, load_adapter(adapter), "float32")
    on_disk = dict(merged_tensors(files.weights, plan))
    in_memory = dict(merged_tensors(reversed(list(files.weights)), plan))
    assert set(on_disk) == set(in_memory)
    assert all(torch.equal(on_disk[name], in_memory[name]) for name in on_disk)


SAVED_BOTH = {"modules_to_save": ["embed_tokens", "lm_head"]}
SAVED_ROWS = {"trainable_token_indices": [5, N_TOKENS + 1]}
SAVED_NAMED_ROWS = {"trainable_token_indices": {"embed_tokens": [5, N_TOKENS + 1]}}


@pytest.mark.parametrize(
    "settings", [SAVED_BOTH, SAVED_ROWS, SAVED_NAMED_ROWS], ids=["both", "rows", "named rows"]
)
@pytest.mark.parametrize("base_name", ["llama", "llama-tied"])
def test_resized_embeddings_set_the_vocabulary(
    base_name: str, settings: dict[str, Any], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases(base_name)
    adapter = train(
        base,
        tmp_path / "adapter",
        prepare=lambda model: model.resize_token_embeddings(N_TOKENS + 3),
        target_modules=["q_proj"],
        **settings,
    )
    plan, tensors = merge(base, adapter)
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(N_TOKENS + 3)
    expected = PeftModel.from_pretrained(model, adapter).eval()
    merged = load_merged(base, plan, tensors, tmp_path / "merged")
    assert merged.config.vocab_size == N_TOKENS + 3
    torch.testing.assert_close(logits(merged), logits(expected), atol=1e-4, rtol=1e-4)


def test_resized_embeddings_that_peft_adds_by_itself_stay_tied(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("llama-tied")
    adapter = train(
        base,
        tmp_path / "adapter",
        prepare=lambda model: model.resize_token_embeddings(N_TOKENS + 3),
        target_modules=["q_proj"],
    )
    assert "base_model.model.model.embed_tokens.weight" in load_file(adapter / "adapter_model.safetensors")
    plan, tensors = merge(base, adapter)
    assert plan.vocab_size == N_TOKENS + 3
    assert not plan.untied
    assert tensors["model.embed_tokens.weight"].shape == (N_TOKENS + 3, 32)


def test_a_converted_pissa_adapter_merges_to_the_trained_model(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("llama")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=ATTENTION, init_lora_weights="pissa", task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    tuned.peft_config["default"].init_lora_weights = True
    tuned.save_pretrained(tmp_path / "start")
    tuned.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    expected = logits(tuned.eval())
    tuned.save_pretrained(
        tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    plan, tensors = merge(base, tmp_path / "adapter")
    merged = load_merged(base, plan, tensors, tmp_path / "merged")
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)


def edited(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    tensors = load_file(directory / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, directory / "adapter_model.safetensors")
    return directory


def fitted(adapter: Path, base: Path, dtype: str = "float32") -> Adapter:
    loaded = load_adapter(adapter)
    dict(merged_tensors(open_model(base).weights, plan_merge(open_model(base), loaded, dtype)))
    return loaded


@pytest.fixture
def adapter(bases: Callable[[str], Path], tmp_path: Path) -> Path:
    return train(bases("llama"), tmp_path / "adapter", target_modules=["q_proj"])


def other_base(tmp_path: Path, **changes: Any) -> Path:
    config = LlamaConfig(**{**DIMENSIONS, "tie_word_embeddings": False, **changes})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def test_a_base_of_another_width_is_refused_with_both_shapes(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"q_proj\.lora_A.*\[4, 32\].*\[64, 64\].*needs \[4, 64\]"):
        fitted(adapter, other_base(tmp_path, hidden_size=64, num_attention_heads=8, num_key_value_heads=4))


def test_a_base_with_fewer_layers_is_refused_with_the_tensor(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"layers\.1\.self_attn\.q_proj\.weight.*lacks.*--base"):
        fitted(adapter, other_base(tmp_path, num_hidden_layers=1))


def test_a_base_of_another_vocabulary_is_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    base = bases("llama")
    saved = train(base, tmp_path / "saved", target_modules=["q_proj"], modules_to_save=["lm_head"])
    other = other_base(tmp_path, vocab_size=80)
    with pytest.raises(InputError, match=r"has 80 tokens.*embedding has 80 rows and the output head 64"):
        fitted(saved, other)


def test_a_lora_on_an_embedding_of_another_vocabulary_is_refused(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    tuned = train(bases("llama"), tmp_path / "tuned", target_modules=["embed_tokens"])
    edited(tuned, lambda tensors: tensors.pop("base_model.model.model.embed_tokens.base_layer.weight"))
    with pytest.raises(InputError, match=r"lora_embedding_A.*\[4, 64\].*\[80, 32\]"):
        fitted(tuned, other_base(tmp_path, vocab_size=80))


def test_a_trained_token_beyond_the_base_is_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    tuned = train(bases("llama"), tmp_path / "tuned", target_modules=["q_proj"], trainable_token_indices=[63])
    with pytest.raises(InputError, match=r"token 63 is out of range.*48 tokens"):
        fitted(tuned, other_base(tmp_path, vocab_size=48))


def test_a_tokenizer_with_tokens_that_the_base_lacks_is_refused(
    adapter: Path, bases: Callable[[str], Path]
) -> None:
    vocabulary = {f"t{i}": i for i in range(N_TOKENS)}
    content: dict[str, Any] = {"model": {"vocab": vocabulary}, "added_tokens": []}
    (adapter / "tokenizer.json").write_text(json.dumps(content))
    fitted(adapter, bases("llama"))
    content["added_tokens"] = [{"id": N_TOKENS, "content": "<new>"}]
    (adapter / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r'has 64 tokens.*"<new>" with the id 64'):
        fitted(adapter, bases("llama"))


def test_a_lora_bias_on_a_base_without_biases_is_refused(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    tuned = train(bases("llama-bias"), tmp_path / "tuned", target_modules=["q_proj"], lora_bias=True)
    with pytest.raises(InputError, match=r"lora_B\.bias belongs to .*q_proj\.bias, which the base .* lacks"):
        fitted(tuned, bases("llama"))


def test_untying_is_refused_where_vllm_has_no_head(bases: Callable[[str], Path], tmp_path: Path) -> None:
    tuned = train(bases("gemma2"), tmp_path / "tuned", target_modules=["lm_head"])
    with pytest.raises(InputError, match="vLLM cannot serve for gemma2"):
        fitted(tuned, bases("gemma2"))


def test_fan_in_fan_out_is_refused_on_an_architecture_without_such_layers(
    adapter: Path, bases: Callable[[str], Path]
) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "fan_in_fan_out": True}))
    with pytest.raises(InputError, match=r"fan_in_fan_out.*GPT-2.*llama"):
        fitted(adapter, bases("llama"))


def test_a_quantised_base_is_refused(adapter: Path, bases: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(bases("llama"), tmp_path / "quantised")
    path = tmp_path / "quantised" / "config.json"
    files = open_model(tmp_path / "quantised")
    path.write_text(json.dumps({**files.config, "quantization_config": {"quant_method": "gptq", "bits": 4}}))
    with pytest.raises(InputError, match=r"quantised \(gptq\).*give the model that it was made from"):
        plan_merge(open_model(tmp_path / "quantised"), load_adapter(adapter), "float32")


def test_a_merge_that_overflows_the_serving_dtype_is_refused(
    adapter: Path, bases: Callable[[str], Path]
) -> None:
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    edited(adapter, lambda tensors: tensors.update({name: tensors[name] * 1e6}))
    fitted(adapter, bases("llama"), "bfloat16")
    with pytest.raises(
        InputError, match=r"layers\.0\.self_attn\.q_proj\.weight holds NaN or infinity in float16"
    ):
        fitted(adapter, bases("llama"), "float16")


def lose(*names: str) -> Callable[[dict[str, torch.Tensor]], None]:
    """Takes the tensors away whose names hold one of `names`."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if any(part in name for part in names)]:
            del tensors[name]

    return change


@pytest.mark.parametrize(
    ("settings", "lost", "said"),
    [
        ({"target_modules": LINEAR}, "layers.1.", "target_modules"),
        ({"target_modules": LINEAR}, "layers.0.mlp.up_proj", r"layers\.0\.mlp\.up_proj \(LoRA\)"),
        ({"target_modules": ".*(q|v)_proj"}, "layers.0.self_attn.v_proj", r"0\.self_attn\.v_proj \(LoRA\)"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens", r"embed_tokens \(LoRA\)"),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]},
            "layers.1.mlp.up_proj",
            r"modules_to_save .*layers\.1\.mlp\.up_proj\.weight",
        ),
        ({"target_modules": ["q_proj"], "bias": "all"}, "layers.1.self_attn.k_proj.bias", "bias of"),
        ({"target_modules": ["q_proj"], "bias": "lora_only"}, "layers.1.self_attn.q_proj.base", "bias of"),
        ({"target_modules": ["q_proj"], "trainable_token_indices": [5]}, "token_adapter", "token rows"),
    ],
)
def test_an_adapter_that_lost_tensors_is_refused(
    settings: Any, lost: str, said: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("llama-bias")
    adapter = train(base, tmp_path / "adapter", **settings)
    assert merge(base, adapter)
    edited(adapter, lose(lost))
    with pytest.raises(InputError, match=rf"lacks tensors that .*{said}") as caught:
        merge(base, adapter)
    assert "\n" not in str(caught.value)


def test_lora_that_the_settings_leave_out_is_refused(bases: Callable[[str], Path], tmp_path: Path) -> None:
    adapter = train(bases("llama"), tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": ["q_proj"]}))
    with pytest.raises(InputError, match=r"LoRA tensors of .*v_proj, which target_modules"):
        merge(bases("llama"), adapter)


def test_an_adapter_fits_files_without_the_models_prefix(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = Path(shutil.copytree(bases("gpt2"), tmp_path / "hub"))
    file = base / "model.safetensors"
    save_file({name.removeprefix("transformer."): x for name, x in load_file(file).items()}, file)
    adapter = train(base, tmp_path / "adapter", target_modules=["c_attn", "wte"], fan_in_fan_out=True)
    plan, tensors = merge(base, adapter)
    merged = load_merged(base, plan, tensors, tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(trained(base, adapter)), atol=1e-4, rtol=1e-4)
    assert "h.0.attn.c_attn.weight" in tensors


def test_an_adapter_of_a_model_with_vision_fits_its_files(tmp_path: Path) -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config=Gemma3TextConfig(**DIMENSIONS, query_pre_attn_scalar=8),
        vision_config=SiglipVisionConfig(**vision, image_size=28, patch_size=14),
        mm_tokens_per_image=4,
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    targets = r".*language_model.*q_proj"
    adapter = train(
        tmp_path / "base",
        tmp_path / "adapter",
        cls=Gemma3ForConditionalGeneration,
        target_modules=targets,
    )
    base = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "base", dtype=torch.float32)
    expected = logits(PeftModel.from_pretrained(base, adapter).eval())
    plan, tensors = merge(tmp_path / "base", adapter)
    load_merged(tmp_path / "base", plan, tensors, tmp_path / "merged")
    merged = Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(merged.eval()), expected, atol=1e-4, rtol=1e-4)


def write_by_hand(base: Path, directory: Path, targets: list[str], rename: Callable[[str], str]) -> Path:
    """An adapter as earlier versions of transformers and PEFT saved it, by the names in the files."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.rpartition(".")[2] in targets:
            d_out, d_in = tensor.shape
            path = f"base_model.model.{rename(module)}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(4, d_in, generator=generator) * 0.2
            tensors[f"{path}.lora_B.weight"] = torch.randn(d_out, 4, generator=generator) * 0.2
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps({**settings, "target_modules": targets}))
    return directory


@pytest.mark.parametrize("targets", [["w1", "w2", "w3", "q_proj"], ["w2"], ["gate", "q_proj"]])
def test_experts_that_were_modules_of_their_own_are_merged_as_peft_does(
    targets: list[str], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("mixtral")
    adapter = write_by_hand(base, tmp_path / "adapter", targets, lambda module: module)
    plan, tensors = merge(base, adapter)
    merged = load_merged(base, plan, tensors, tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(trained(base, adapter)), atol=1e-4, rtol=1e-4)
    edited(adapter, lose("layers.0.block_sparse_moe.experts.3." if "w2" in targets else "layers.0."))
    with pytest.raises(InputError, match=r"lacks tensors that target_modules"):
        merge(base, adapter)


def test_a_router_is_merged_where_peft_takes_lora_on_it_and_else_refused(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("qwen3_moe")
    adapter = write_by_hand(base, tmp_path / "adapter", ["gate", "q_proj"], lambda module: module)
    plan, tensors = merge(base, adapter)
    merged = load_merged(base, plan, tensors, tmp_path / "merged")
    torch.testing.assert_close(logits(merged), logits(trained(base, adapter)), atol=1e-4, rtol=1e-4)
    base = bases("qwen2_moe")
    adapter = write_by_hand(base, tmp_path / "refused", ["gate", "q_proj"], lambda module: module)
    with pytest.raises(ValueError, match="Qwen2MoeTopKRouter"):
        trained(base, adapter)
    with pytest.raises(
        InputError, match=r"changes model\.layers\.0\.mlp\.gate, where PEFT takes no"
    ) as refused:
        merge(base, adapter)
    assert "\n" not in str(refused.value)


def test_experts_beside_a_module_of_the_same_name_are_refused(
    bases: Callable[[str], Path], tmp_path: Path
) -> None:
    base = bases("qwen2_moe")
    for targets in (["gate_proj", "up_proj", "down_proj"], ["down_proj"]):
        adapter = write_by_hand(base, tmp_path / str(len(targets)), targets, lambda module: module)
        with pytest.raises(InputError, match=r"shared_expert\.\w+_proj is called the same"):
            merge(base, adapter)
