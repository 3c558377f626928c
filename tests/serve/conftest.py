"""The real model, converted once into the user's cache; tiny random ones; the logits that an engine gives."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trained_families
from architectures import ARCHITECTURES, GEMMA, LLAMA_LIKE
from gpu_path import call
from trained_families import Logits

from morfi.cache import Cache
from morfi.checkpoints.embedded import embedded_model
from morfi.checkpoints.presets import preset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    **ARCHITECTURES,
    "llama": ARCHITECTURES["LlamaForCausalLM"],
    "llama without biases": ("llama", LLAMA_LIKE),
    "llama of five layers": ("llama", {**LLAMA_LIKE, "num_hidden_layers": 5}),
    "llama-tied": ("llama", {**LLAMA_LIKE, "tie_word_embeddings": True}),
    "mistral": ARCHITECTURES["MistralForCausalLM"],
    "gemma2": ("gemma2", GEMMA),
    "gemma2 without a cap": ARCHITECTURES["Gemma2ForCausalLM"],
    "mixtral": ARCHITECTURES["MixtralForCausalLM"],
    "gpt2": ARCHITECTURES["GPT2LMHeadModel"],
}


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    return embedded_model(preset("smollm2"), Cache(), None)


@pytest.fixture(scope="session")
def make_base(make_tokenizer: Callable[..., PreTrainedTokenizerFast]) -> Callable[[Path, str], Path]:
    """Saves a tiny random model of a family, with its tokenizer, in a folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(directory: Path, family: str) -> Path:
        torch.manual_seed(0)
        model_type, settings = FAMILIES[family]
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(directory)
        make_tokenizer(adds_bos=False).save_pretrained(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def tiny_base(
    tmp_path_factory: pytest.TempPathFactory, make_base: Callable[[Path, str], Path]
) -> Callable[[str], Path]:
    """Gives the folder of a family's tiny random model, which is made once; only to be read."""
    folder = tmp_path_factory.mktemp("bases")
    return functools.cache(lambda family: make_base(folder / family, family))


@pytest.fixture(scope="session")
def train() -> Callable[..., Path]:
    """Saves a LoRA adapter on a base, whose every trainable number has moved at random, in a folder."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def make(directory: Path, base: Path, *, seed: int = 1, scale: float = 0.2, **settings: Any) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            torch.manual_seed(seed)
            config = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **settings}
            tuned = get_peft_model(model, LoraConfig(**config))
            with torch.no_grad():
                for parameter in tuned.parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn_like(parameter) * scale)
            tuned.save_pretrained(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def greedy_tokens() -> Callable[..., list[list[int]]]:
    """Greedy tokens of transformers in float32, one prompt at a time, until a newline or the end."""
    import torch
    from transformers import AutoModelForCausalLM

    def generate(
        folder: Path, prompts: Sequence[list[int]], newline_ids: Iterable[int], *, max_tokens: int
    ) -> list[list[int]]:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        end = model.config.eos_token_id
        settings = {"max_new_tokens": max_tokens, "do_sample": False, "pad_token_id": end}
        settings["eos_token_id"] = sorted({*newline_ids, end})
        with torch.inference_mode():
            return [
                model.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist()
                for prompt in prompts
            ]

    return generate


@pytest.fixture(scope="session")
def raw_logits(starts_vllm: None) -> Callable[..., Logits]:
    """As `trained_families.raw_logits`, wherever the engine runs."""
    return lambda engine, **how: call(engine, functools.partial(trained_families.raw_logits, **how))


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the tests of one file, with a cache of its own that worker processes see as well."""
    root = tmp_path_factory.mktemp("swap")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORFI_CACHE", str(root / "cache"))
        yield root
