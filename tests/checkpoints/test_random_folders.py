"""Random tiny folders: what is served is what transformers and PEFT compute in float32, or is refused.

Each example draws an architecture, how its folder is saved, what is wrong with it, and an adapter on it. The
reference is transformers' and PEFT's own loading of the same folders. Where those have to make something up,
a refusal is the only right answer; where nothing is wrong, it is not one.

A tokenizer's variants would be one more field of `Folder`, written by `write_folder`.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, currently_in_test_context, event, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from morfi.cache import Cache
from morfi.checkpoints import resolve
from morfi.checkpoints.model_files import open_model
from morfi.engine.protocol import Sampling
from morfi.errors import InputError, MorfiError
from morfi.serve.engine import Engine

# vLLM's own models of these have no place for a head in the file, and say so when an engine starts.
HEADLESS = ("bloom", "gemma2")
TOKENS = torch.tensor([[3, 1, 4, 15, 9, 2, 6, 5]])
COMMON = {"vocab_size": 259, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
COMMON |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "max_position_embeddings": 128}
LLAMA_LIKE = {**COMMON, "intermediate_size": 96, "num_key_value_heads": 1, "head_dim": 32}
GPT2 = {"vocab_size": 259, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 128}


@dataclass(frozen=True)
class Family:
    """An architecture: its configuration, the names of its modules, and the prefix that older files lack."""

    settings: dict[str, Any]
    linear: tuple[str, ...]
    embedding: str
    norm: str
    prefix: str = "model."


LLAMA_NAMES = (("q_proj", "v_proj", "o_proj"), "embed_tokens", "norm")
FAMILIES = {
    "llama": Family({**LLAMA_LIKE, "attention_bias": True}, *LLAMA_NAMES),
    "mistral": Family({**LLAMA_LIKE, "sliding_window": None}, *LLAMA_NAMES),
    "qwen2": Family({k: v for k, v in LLAMA_LIKE.items() if k != "head_dim"}, *LLAMA_NAMES),
    "gemma2": Family({**LLAMA_LIKE, "query_pre_attn_scalar": 32}, *LLAMA_NAMES),
    "mixtral": Family({**LLAMA_LIKE, "num_local_experts": 4}, *LLAMA_NAMES),
    "gpt2": Family(
        {**GPT2, "bos_token_id": 0, "eos_token_id": 1}, ("c_attn", "c_fc"), "wte", "ln_f", "transformer."
    ),
    "gpt_neox": Family(
        {**COMMON, "intermediate_size": 96},
        ("query_key_value", "dense_h_to_4h"),
        "embed_in",
        "final_layer_norm",
        "gpt_neox.",
    ),
    "opt": Family(
        {**COMMON, "ffn_dim": 96, "word_embed_proj_dim": 64},
        ("q_proj", "fc1"),
        "embed_tokens",
        "final_layer_norm",
    ),
    "bloom": Family(
        {**COMMON, "n_layer": 2, "n_head": 2},
        ("query_key_value", "dense_h_to_4h"),
        "word_embeddings",
        "ln_f",
        "transformer.",
    ),
}


@dataclass(frozen=True)
class Folder:
    """How a model's folder is saved; `which` chooses the tensor that a `damage` hits."""

    family: str
    tied: bool  # by the configuration
    head: str  # "as saved", "same" as the embedding, or "own"
    dtype: str
    shards: int
    prefix: bool
    beside: str
    damage: str
    which: int

    @property
    def is_sound(self) -> bool:
        """Whether there is no reason to refuse it."""
        needs_tie = self.family == "gemma2"  # vLLM has no other head for it
        return self.damage == "nothing" and not (needs_tie and (not self.tied or self.head == "own"))


@dataclass(frozen=True)
class Adapter:
    """A trained adapter, and what became of its file."""

    targets: frozenset[str]  # "linear", "embedding", "head"
    saved: frozenset[str]  # "norm", "embedding", "head"
    bias: str
    rslora: bool
    dora: bool
    damage: str
    which: int


def folders(**fixed: Any) -> st.SearchStrategy[Folder]:
    drawn: dict[str, st.SearchStrategy[Any]] = {
        "family": st.sampled_from(sorted(FAMILIES)),
        "tied": st.booleans(),
        "head": st.sampled_from(["as saved", "same", "own"]),
        "dtype": st.sampled_from(["float32", "bfloat16", "mixed"]),
        "shards": st.sampled_from([1, 2]),
        "prefix": st.booleans(),
        "beside": st.sampled_from(["nothing", "nothing", "stale index", "consolidated"]),
        "damage": st.sampled_from(["nothing"] * 9 + ["missing", "extra", "empty", "twice", "wider"]),
        "which": st.integers(0, 99),
    }
    return st.builds(Folder, **(drawn | {name: st.just(value) for name, value in fixed.items()}))


ADAPTERS = st.builds(
    Adapter,
    targets=st.frozensets(st.sampled_from(["linear", "embedding", "head"]), min_size=1),
    saved=st.frozensets(st.sampled_from(["norm", "embedding", "head"]), max_size=2),
    bias=st.sampled_from(["none", "none", "all", "lora_only"]),
    rslora=st.booleans(),
    dora=st.booleans(),
    damage=st.sampled_from(["nothing"] * 3 + ["lost", "lost layer", "foreign", "narrower"]),
    which=st.integers(0, 99),
)


def write_folder(folder: Folder, path: Path) -> Path:
    """Saves a random model as `folder` says."""
    config = AutoConfig.for_model(
        folder.family, **FAMILIES[folder.family].settings, tie_word_embeddings=folder.tied
    )
    torch.manual_seed(folder.which)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(path)
    tensors = load_file(path / "model.safetensors")
    _set_head(folder, tensors)
    _damage(folder, tensors)
    if not folder.prefix:
        own = FAMILIES[folder.family].prefix
        tensors = {name.removeprefix(own): tensor for name, tensor in tensors.items()}
    for name in tensors:
        if folder.dtype == "bfloat16" or (folder.dtype == "mixed" and "norm" not in name):
            tensors[name] = tensors[name].bfloat16()
    _save(folder, path, tensors)
    return path


def _set_head(folder: Folder, tensors: dict[str, torch.Tensor]) -> None:
    name = "embed_out.weight" if folder.family == "gpt_neox" else "lm_head.weight"
    embedding = next(x for key, x in tensors.items() if f".{FAMILIES[folder.family].embedding}.weight" in key)
    if folder.head == "same":
        tensors[name] = embedding.clone()
    elif folder.head == "own":
        tensors[name] = torch.randn_like(embedding) * 0.15


def _damage(folder: Folder, tensors: dict[str, torch.Tensor]) -> None:
    name = sorted(tensors)[folder.which % len(tensors)]
    if folder.damage == "missing":
        del tensors[name]
    elif folder.damage == "empty":
        tensors[name] = torch.zeros(0)
    elif folder.damage == "wider":
        tensors[name] = torch.cat([tensors[name], tensors[name]])
    elif folder.damage == "extra":
        tensors[f"{name.removesuffix('.weight')}.extra"] = torch.ones(3)
    elif folder.damage == "twice":
        tensors[f"{FAMILIES[folder.family].prefix}{name}"] = tensors[name].clone()


def _save(folder: Folder, path: Path, tensors: dict[str, torch.Tensor]) -> None:
    index, meta = path / "model.safetensors.index.json", {"format": "pt"}
    if folder.shards == 1:
        save_file(tensors, path / "model.safetensors", meta)
        if folder.beside == "stale index":
            index.write_text(
                json.dumps({"metadata": {}, "weight_map": {"a": "model-00001-of-00003.safetensors"}})
            )
    else:
        (path / "model.safetensors").unlink()
        names = sorted(tensors)
        halves = {
            "model-00001-of-00002.safetensors": names[::2],
            "model-00002-of-00002.safetensors": names[1::2],
        }
        for file, part in halves.items():
            save_file({name: tensors[name] for name in part}, path / file, meta)
        where = {name: file for file, part in halves.items() for name in part}
        index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    if folder.beside == "consolidated":
        save_file({"norm.weight": torch.zeros(64)}, path / "consolidated.safetensors", meta)


def write_adapter(adapter: Adapter, base: Path, path: Path) -> Path | None:
    """Trains an adapter on `base` as `adapter` says; None where PEFT refuses to."""
    family = FAMILIES[json.loads((base / "config.json").read_text())["model_type"]]
    names = {"embedding": family.embedding, "norm": family.norm, "head": "lm_head"}
    linear = family.linear if "linear" in adapter.targets else ()
    targets = [*linear, *(names[what] for what in sorted(adapter.targets - {"linear"}))]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(adapter.which)
    try:
        tuned = get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=3,
                lora_alpha=5,
                target_modules=targets,
                modules_to_save=[names[what] for what in sorted(adapter.saved)] or None,
                bias=adapter.bias,
                use_rslora=adapter.rslora,
                use_dora=adapter.dora,
            ),
        )
    except (ValueError, TypeError, AttributeError):
        return None
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned.save_pretrained(path)
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = sorted(tensors)[adapter.which % len(tensors)]
    if adapter.damage == "lost":
        del tensors[name]
    elif adapter.damage == "lost layer":
        tensors = {key: tensor for key, tensor in tensors.items() if ".1." not in key}
    elif adapter.damage == "foreign":
        tensors[name.replace(".0.", ".7.").replace("embed", "other")] = tensors[name].clone()
    elif adapter.damage == "narrower":
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, file)
    return path


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        computed: torch.Tensor = model.eval()(TOKENS).logits
        return computed


def load_by_transformers(folder: Path) -> Any:
    """transformers' model; None where it raises, or fills in what is missing."""
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    except (RuntimeError, ValueError, OSError, KeyError):
        return None
    return None if info["missing_keys"] or info["mismatched_keys"] or info["error_msgs"] else model


def load_by_peft(base: Any, adapter: Path) -> Any:
    """PEFT's model on `base`; None where it raises, or says that tensors are missing."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            model = PeftModel.from_pretrained(base, adapter)
        except (RuntimeError, ValueError, KeyError):
            return None
    return None if any("missing adapter keys" in str(each.message) for each in said) else model


def tell(what: str) -> None:
    """For `--hypothesis-show-statistics`."""
    if currently_in_test_context():
        event(what)


def what_vllm_reads(folder: Path) -> dict[str, torch.Tensor]:
    """By its rule: the files that an index names, else all."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
    else:
        names = {path.name for path in folder.glob("*.safetensors")}
    return {key: tensor for name in sorted(names) for key, tensor in load_file(folder / name).items()}


def served(ckpt: Path, root: Path) -> Path | None:
    """The folder that the product would serve, None where it refuses, in one line."""
    try:
        return resolve(str(ckpt), dtype="float32", cache=Cache(root / "cache")).model_dir
    except InputError as error:
        said = str(error)
    assert "\n" not in said
    tell(f"refused: {said.partition(': ')[2][:30]}")
    return None


def check(folder: Folder, adapter: Adapter | None, root: Path) -> Path | None:
    """Asserts the property; returns what is served, if that is the same."""
    base = write_folder(folder, root / "base")
    reference = load_by_transformers(base)
    ckpt, is_sound = base, folder.is_sound
    if reference is not None and adapter is not None:
        saved = write_adapter(adapter, base, root / "adapter")
        if saved is None:
            tell("no such adapter")
            return None
        ckpt, reference = saved, load_by_peft(load_by_transformers(base), saved)
        # Only one end of what Gemma 2 shares cannot be served.
        ends = (adapter.targets | adapter.saved) & {"embedding", "head"}
        is_sound = is_sound and adapter.damage == "nothing" and not (folder.family == "gemma2" and ends)
    got = served(ckpt, root)
    if reference is None:
        assert got is None, "served although transformers or PEFT make something up"
        return None
    if got is None:
        assert not is_sound, "refused although nothing is wrong"
        return None
    model = load_by_transformers(got)
    assert model is not None
    torch.testing.assert_close(logits(model), logits(reference), atol=2e-4, rtol=2e-4)
    read = what_vllm_reads(got)
    own = model.state_dict()
    # Names that transformers passes over are buffers of older versions to it, and nothing to vLLM.
    passed_over = re.compile("|".join(model._keys_to_ignore_on_load_unexpected or ["$^"]))
    assert sum(
        x.numel()
        for name, x in read.items()
        if name not in ("lm_head.weight", "embed_out.weight") and not passed_over.search(name)
    ) == sum(
        x.numel() for name, x in own.items() if name != "lm_head.weight" and not passed_over.search(name)
    )
    tell("served")
    return got


QUIET = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@given(folders(), st.none() | ADAPTERS)
@settings(QUIET, max_examples=25)
@pytest.mark.long
def test_a_folder_gives_what_transformers_and_peft_compute_or_is_refused(
    folder: Folder, adapter: Adapter | None
) -> None:
    with tempfile.TemporaryDirectory() as root:
        check(folder, adapter, Path(root))


@pytest.mark.slow
@given(folders(), st.none() | ADAPTERS)
@settings(QUIET, max_examples=400)
def test_many_folders_give_what_transformers_and_peft_compute_or_are_refused(
    folder: Folder, adapter: Adapter | None
) -> None:
    with tempfile.TemporaryDirectory() as root:
        check(folder, adapter, Path(root))


def check_in_engine(folder: Folder, adapter: Adapter | None, root: Path, tokenizer: Any) -> None:
    """Asserts that an engine on what is served gives transformers' greedy tokens."""
    model_dir = check(folder, adapter, root)
    if model_dir is None:
        return
    reference = load_by_transformers(root / "base")
    if adapter is not None:
        reference = load_by_peft(reference, root / "adapter")
    tokenizer.save_pretrained(model_dir)
    prompts = [[0, *range(5 + n, 9 + 3 * n)] for n in (1, 7, 20)]
    with torch.no_grad():
        expected = [
            reference.generate(
                input_ids=torch.tensor([prompt]), max_new_tokens=6, do_sample=False, eos_token_id=1
            )[0, len(prompt) :].tolist()
            for prompt in prompts
        ]
    if folder.family in HEADLESS and "lm_head.weight" in open_model(model_dir).weights.tensors:
        with pytest.raises(MorfiError, match="no module or parameter named 'lm_head'"):
            Engine(model_dir, dtype="float32", context=128)
        return
    engine = Engine(model_dir, dtype="float32", context=128)
    with engine:
        newline = 3 + ord("\n")
        answers = engine.generate(prompts, Sampling(max_tokens=6))
    for answer, tokens in zip(answers, expected, strict=True):
        until = tokens.index(newline) + 1 if newline in tokens else len(tokens)
        assert list(answer[0].token_ids) == tokens[:until]


PLAIN = Folder("gpt_neox", True, "own", "float32", 2, True, "nothing", "nothing", 5)
LINEAR = Adapter(frozenset({"linear"}), frozenset(), "none", False, False, "nothing", 3)


@pytest.mark.usefixtures("starts_vllm")
def test_an_engine_serves_the_own_head_of_a_folder_that_claims_a_tie(
    make_tokenizer: Any, tmp_path: Path
) -> None:
    check_in_engine(PLAIN, None, tmp_path, make_tokenizer(adds_bos=False))


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", ["as saved", "same", "own"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.usefixtures("starts_vllm")
def test_an_engine_serves_what_transformers_computes(
    family: str, head: str, tied: bool, make_tokenizer: Any, tmp_path: Path
) -> None:
    folder = Folder(family, tied, head, "mixed", 1, True, "nothing", "nothing", 11)
    adapter = None if head == "same" else LINEAR
    check_in_engine(folder, adapter, tmp_path, make_tokenizer(adds_bos=False))
