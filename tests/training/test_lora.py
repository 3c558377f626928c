from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from morfi.training import train_config
from morfi.training.lora import adapter_tensors, attach_lora, detach_lora, load_adapter_tensors

TOKENS = torch.tensor([[5, 9, 70, 101, 33, 8]])


def config(**given: Any) -> Any:
    return train_config({"model": "smollm2", "rank": 3, "alpha": 7.0} | given)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def randomised(model: Any) -> Any:
    """The model with LoRA matrices that change its logits: B is 0 at first."""
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral"])
def test_logits_and_gradients_are_those_of_peft(tiny_models: dict[str, Path], architecture: str) -> None:
    ours = randomised(attach_lora(load(tiny_models[architecture]), config(), seed=0))
    peft_config = LoraConfig(r=3, lora_alpha=7.0, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = get_peft_model(load(tiny_models[architecture]), peft_config)
    load_adapter_tensors(theirs, adapter_tensors(ours))
    found, expected = ours(input_ids=TOKENS).logits, theirs(input_ids=TOKENS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    named = dict(theirs.named_parameters())
    trained = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * 2  # A and B of seven linear layers in each of two blocks
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, named[name].grad, rtol=1e-3, atol=1e-4)
    assert all(p.grad is None for p in ours.parameters() if not p.requires_grad)


def test_lora_stays_in_float32_on_a_bfloat16_base(tiny_models: dict[str, Path]) -> None:
    model = randomised(attach_lora(load(tiny_models["llama"], torch.bfloat16), config(), seed=0))
    logits = model(input_ids=TOKENS).logits
    assert logits.dtype == torch.bfloat16
    logits.float().square().sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained)
    exact = randomised(attach_lora(load(tiny_models["llama"]), config(), seed=0))
    # bfloat16 keeps 8 bits of each number; the logits are sums over a few layers.
    torch.testing.assert_close(logits.float(), exact(input_ids=TOKENS).logits, rtol=0.1, atol=0.3)


def test_the_seed_decides_the_first_matrices(tiny_models: dict[str, Path]) -> None:
    first, again, other = (
        adapter_tensors(attach_lora(load(tiny_models["llama"]), config(), seed)) for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_detached_base_is_what_it_was(tiny_models: dict[str, Path]) -> None:
    base = load(tiny_models["llama"])
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    fresh = adapter_tensors(attach_lora(load(tiny_models["llama"]), config(), seed=1))
    for _ in range(2):
        base = detach_lora(randomised(attach_lora(base, config(gradient_checkpointing=True), seed=0)))
        assert list(base.state_dict()) == list(before)
        assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    again = adapter_tensors(attach_lora(base, config(), seed=1))
    assert all(torch.equal(tensor, again[name]) for name, tensor in fresh.items())


def test_only_named_modules_get_lora(tiny_models: dict[str, Path]) -> None:
    model = attach_lora(load(tiny_models["llama"]), config(targets=("q_proj", "v_proj")), seed=0)
    modules = {name.split(".")[-3] for name in adapter_tensors(model)}
    assert modules == {"q_proj", "v_proj"}


def test_experts_get_no_lora_for_it_could_not_be_merged() -> None:
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 4}
    model = attach_lora(MixtralForCausalLM(MixtralConfig(**sizes, **heads)), config(), seed=0)
    lora = model.peft_config["default"]
    assert not lora.target_parameters
    assert not lora.rank_pattern
    trained = {name.split(".lora_")[0].rpartition(".")[2] for name in adapter_tensors(model)}
    assert trained == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert {p.shape[-1] for name, p in model.named_parameters() if "lora_B" in name} == {3}
