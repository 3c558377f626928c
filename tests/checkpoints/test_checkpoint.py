from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

import morfi.checkpoints.checkpoint
from morfi.cache import Cache
from morfi.checkpoints import resolve, resolve_unmerged
from morfi.errors import InputError

DIMENSIONS = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
TOKENS = torch.tensor([[3, 1, 4, 15, 9, 2, 6, 5]])


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("originals")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(LlamaConfig(**DIMENSIONS)).save_pretrained(root / "base")
    (root / "base" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": 0}}}))
    AutoModelForCausalLM.from_config(MistralConfig(**DIMENSIONS)).save_pretrained(root / "mistral")
    model = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    tuned.save_pretrained(root / "adapter")
    return root


@pytest.fixture
def root(originals: Path, tmp_path: Path) -> Path:
    """Fresh copies of a base and an adapter that names it, and an empty default cache."""
    for name in ("base", "adapter", "mistral"):
        shutil.copytree(originals / name, tmp_path / name)
    configure(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "base"))
    return tmp_path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    monkeypatch.setenv("MORFI_CACHE", str(tmp_path / "cache"))
    return Cache()


def configure(adapter: Path, **settings: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(TOKENS).logits
    return found


def test_a_model_folder_is_served_as_it_lies(root: Path, cache: Cache) -> None:
    checkpoint = resolve(str(root / "base"))
    assert checkpoint.model_dir == root / "base"
    assert (checkpoint.name, checkpoint.base, checkpoint.dtype) == ("base", "base", "float32")
    assert checkpoint.sha256 == checkpoint.base_sha256
    assert checkpoint.adapter_sha256 is None
    assert cache.entries() == []
    assert resolve(str(root / "base"), dtype="bfloat16").dtype == "bfloat16"


def test_an_adapter_is_served_merged_into_the_base_it_names(root: Path, cache: Cache) -> None:
    checkpoint = resolve(str(root / "adapter"))
    base = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
    plain = logits(base)
    expected = logits(PeftModel.from_pretrained(base, root / "adapter"))
    merged = logits(AutoModelForCausalLM.from_pretrained(checkpoint.model_dir, dtype=torch.float32))
    assert not torch.allclose(plain, expected, atol=1e-3)
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-5)
    assert (checkpoint.name, checkpoint.base) == ("adapter", "base")
    assert checkpoint.base_sha256 == resolve(str(root / "base")).sha256
    assert len({checkpoint.sha256, checkpoint.base_sha256, checkpoint.adapter_sha256}) == 3
    (entry,) = cache.entries()
    assert (entry.path, entry.key, entry.name) == (checkpoint.model_dir, checkpoint.sha256, "adapter on base")


@pytest.mark.parametrize(("native", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_the_default_dtype_is_the_one_this_cpu_is_fast_in(
    root: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch, native: bool, dtype: str
) -> None:
    monkeypatch.setattr("morfi.device.is_gpu", lambda: False)
    monkeypatch.setattr("morfi.device.cpu_has_bfloat16", lambda: native)
    resolved = resolve(str(root / "adapter"), dtype="bfloat16")
    assert resolve(str(resolved.model_dir)).dtype == dtype


def test_a_merged_checkpoint_is_built_once_and_in_the_serving_dtype(
    root: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache
) -> None:
    said: list[str] = []
    first = resolve(str(root / "adapter"), dtype="bfloat16", say=said.append)
    # The base is stored in float32, and vLLM casts what it loads: nothing is rounded before.
    tensors = load_file(first.model_dir / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert json.loads((first.model_dir / "config.json").read_text())["dtype"] == "bfloat16"
    assert sum("merging" in line for line in said) == 1
    monkeypatch.setattr(morfi.checkpoints.checkpoint, "plan_merge", None)
    assert resolve(str(root / "adapter"), dtype="bfloat16") == first
    assert len(cache.entries()) == 1


def test_each_dtype_base_and_scaling_has_an_entry_of_its_own(root: Path, cache: Cache) -> None:
    keys = {resolve(str(root / "adapter"), dtype=dtype).sha256 for dtype in ("float32", "bfloat16")}
    configure(root / "adapter", lora_alpha=99)
    keys.add(resolve(str(root / "adapter")).sha256)
    tensors = load_file(root / "base" / "model.safetensors")
    save_file(
        {**tensors, "model.norm.weight": tensors["model.norm.weight"] * 2},
        root / "base" / "model.safetensors",
        {"format": "pt"},
    )
    keys.add(resolve(str(root / "adapter")).sha256)
    assert len(keys) == len(cache.entries()) == 4


def test_a_moved_adapter_and_base_find_the_same_entry(root: Path, cache: Cache) -> None:
    first = resolve(str(root / "adapter"))
    (root / "adapter").rename(root / "moved")
    (root / "base").rename(root / "also moved")
    again = resolve(str(root / "moved"), base=str(root / "also moved"))
    assert (again.sha256, again.model_dir, again.name) == (first.sha256, first.model_dir, "moved")
    assert len(cache.entries()) == 1


def test_an_entry_carries_the_tokenizer_of_the_adapter_else_of_the_base(root: Path) -> None:
    first = resolve(str(root / "adapter"))
    assert json.loads((first.model_dir / "tokenizer.json").read_text()) == {"model": {"vocab": {"a": 0}}}
    (root / "adapter" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"b": 0}}}))
    (root / "adapter" / "modeling.py").write_text("raise SystemExit")
    second = resolve(str(root / "adapter"))
    assert json.loads((second.model_dir / "tokenizer.json").read_text()) == {"model": {"vocab": {"b": 0}}}
    assert second.sha256 != first.sha256
    assert not list(second.model_dir.glob("*.py"))
    assert (second.model_dir / "generation_config.json").is_file()


def test_an_adapters_tokenizer_in_vocab_json_and_merges_txt_is_the_entrys(root: Path) -> None:
    before = resolve(str(root / "adapter"))
    (root / "adapter" / "vocab.json").write_text('{"b": 0}')
    (root / "adapter" / "merges.txt").write_text("#version: 0.2\n")
    found = resolve(str(root / "adapter"))
    assert found.sha256 != before.sha256
    assert json.loads((found.model_dir / "vocab.json").read_text()) == {"b": 0}
    assert (found.model_dir / "merges.txt").is_file()
    assert not (found.model_dir / "tokenizer.json").exists()


def test_a_failed_merge_leaves_no_entry(root: Path, cache: Cache) -> None:
    configure(root / "adapter", base_model_name_or_path=str(root / "mistral"))
    tensors = load_file(root / "adapter" / "adapter_model.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] * 1e37}, root / "adapter" / "adapter_model.safetensors")
    with pytest.raises(InputError, match="holds NaN or infinity in float16"):
        resolve(str(root / "adapter"), dtype="float16")
    assert cache.entries() == []
    assert [path for path in cache.root.rglob("*") if path.suffix == ".safetensors"] == []


def test_a_base_on_the_command_line_goes_before_the_one_in_the_configuration(root: Path) -> None:
    checkpoint = resolve(str(root / "adapter"), base=str(root / "mistral"))
    assert checkpoint.base == "mistral"
    assert checkpoint.base_sha256 == resolve(str(root / "mistral")).sha256


def refusals() -> dict[str, tuple[Callable[[Path], dict[str, Any]], str]]:
    def adapter(root: Path, **settings: Any) -> dict[str, Any]:
        configure(root / "adapter", **settings)
        return {"ckpt": str(root / "adapter")}

    def broken(root: Path) -> dict[str, Any]:
        path = root / "base" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        return {"ckpt": str(root / "base")}

    def not_finite(root: Path) -> dict[str, Any]:
        tensors = load_file(root / "base" / "model.safetensors")
        tensors["model.norm.weight"][3] = torch.nan
        save_file(tensors, root / "base" / "model.safetensors", {"format": "pt"})
        return {"ckpt": str(root / "base")}

    return {
        "misspelt preset": (lambda root: {"ckpt": "smolm2"}, 'Did you mean "smollm2"'),
        "empty": (lambda root: {"ckpt": ""}, "unknown checkpoint"),
        "missing folder": (lambda root: {"ckpt": str(root / "gone")}, "there is no folder"),
        "missing relative folder": (lambda root: {"ckpt": "./gone"}, "there is no folder"),
        "a file": (lambda root: {"ckpt": str(root / "base" / "config.json")}, "is a file"),
        "unknown dtype": (lambda root: {"ckpt": "x", "dtype": "bfloat32"}, "expected one of bfloat16"),
        "base of no adapter": (lambda root: {"ckpt": str(root / "base"), "base": "x"}, "leave --base out"),
        "no base": (lambda root: adapter(root, base_model_name_or_path=None), "give it with --base"),
        "missing base": (
            lambda root: adapter(root, base_model_name_or_path="/gone"),
            "adapter is not here; give it with --base. adapter_config.json names it '/gone'",
        ),
        "base of another machine": (
            lambda root: adapter(root, base_model_name_or_path="C:\\models\\llama"),
            "is not here; give it with --base",
        ),
        "base named alone": (
            lambda root: adapter(root, base_model_name_or_path="Llama-3.2-1B"),
            "is not here; give it with --base",
        ),
        "base by address": (
            lambda root: adapter(root, base_model_name_or_path="https://huggingface.co/a/b"),
            "is not here; give it with --base",
        ),
        "an adapter as base": (
            lambda root: adapter(root, base_model_name_or_path=str(root / "adapter")),
            "adapter itself",
        ),
        "truncated weights": (broken, "truncated or corrupt"),
        "weights not finite": (not_finite, "model.norm.weight holds NaN"),
    }


@pytest.mark.parametrize("case", refusals())
def test_what_cannot_be_served_is_refused_in_one_line(root: Path, case: str, cache: Cache) -> None:
    prepare, said = refusals()[case]
    with pytest.raises(InputError) as caught:
        resolve(**prepare(root))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert cache.entries() == []


def test_a_hub_id_that_cannot_be_fetched_says_a_folder_works(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(model_id: str, **options: Any) -> str:
        raise LocalEntryNotFoundError("no connection\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    for given in ("someone/model", "llama-3.1-8b"):
        with pytest.raises(
            InputError, match=r"could not be fetched from the hub \(no connection\).*give its folder"
        ) as caught:
            resolve(given)
        assert "\n" not in str(caught.value)


def test_a_hub_id_is_fetched_without_pickles_or_code(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fetch(model_id: str, **options: Any) -> str:
        asked.append((model_id, options["revision"], options["allow_patterns"]))
        return str(root / "base")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert resolve("someone/model").name == "someone/model"
    configure(root / "adapter", base_model_name_or_path="someone/base", revision="v2")
    assert resolve(str(root / "adapter")).base == "someone/base"
    assert [(model_id, revision) for model_id, revision, _ in asked] == [
        ("someone/model", None),
        ("someone/base", "v2"),
    ]
    patterns = asked[0][2]
    assert all(not pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in patterns)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_unmerged_adapter_has_the_sha256_of_the_merged_one_and_writes_nothing(
    root: Path, cache: Cache, dtype: str
) -> None:
    base = resolve(str(root / "base"), dtype=dtype)
    unmerged = resolve_unmerged(str(root / "adapter"), base=base)
    assert cache.entries() == []
    merged = resolve(str(root / "adapter"), dtype=dtype)
    assert unmerged.sha256 == merged.sha256 != base.sha256
    assert unmerged.adapter_sha256 == merged.adapter_sha256
    assert unmerged.base_sha256 == merged.base_sha256 == base.sha256
    assert (unmerged.name, unmerged.base, unmerged.dtype) == (merged.name, merged.base, dtype)
    assert (unmerged.model_dir, unmerged.adapter_dir) == (root / "base", root / "adapter")
    assert merged.adapter_dir is None


def test_an_unmerged_adapter_of_another_base_is_refused_where_that_is_here(root: Path) -> None:
    base = resolve(str(root / "base"))
    configure(root / "adapter", base_model_name_or_path=str(root / "mistral"))
    with pytest.raises(InputError, match=r"was trained on .*mistral, which does not hold the model base"):
        resolve_unmerged(str(root / "adapter"), base=base)


@pytest.mark.parametrize("named", [None, "someone/some-model", "/gone/from/here"])
def test_a_base_that_is_not_here_to_compare_is_no_reason_to_refuse(root: Path, named: str | None) -> None:
    configure(root / "adapter", base_model_name_or_path=named)
    base = resolve(str(root / "base"))
    assert resolve_unmerged(str(root / "adapter"), base=base).base_sha256 == base.sha256


def test_what_is_no_adapter_cannot_be_unmerged(root: Path) -> None:
    base = resolve(str(root / "base"))
    with pytest.raises(InputError, match="is not an adapter"):
        resolve_unmerged(str(root / "base"), base=base)


def test_an_unmerged_adapter_with_damaged_tensors_is_refused(root: Path) -> None:
    base = resolve(str(root / "base"))
    file = root / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated or corrupt"):
        resolve_unmerged(str(root / "adapter"), base=base)


def test_an_unmerged_adapter_with_a_tokenizer_of_its_own_is_refused(
    root: Path, make_tokenizer: Callable[..., Any]
) -> None:
    make_tokenizer().save_pretrained(root / "base")
    base = resolve(str(root / "base"))
    make_tokenizer().save_pretrained(root / "adapter")
    assert resolve_unmerged(str(root / "adapter"), base=base)
    make_tokenizer(adds_bos=False).save_pretrained(root / "adapter")
    with pytest.raises(InputError, match="comes with a tokenizer that is not that of its base"):
        resolve_unmerged(str(root / "adapter"), base=base)


def test_a_base_named_like_a_preset_is_the_folder_that_peft_would_take(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "base").rename(root / "smollm2")
    configure(root / "adapter", base_model_name_or_path="smollm2")
    monkeypatch.chdir(root)
    monkeypatch.setattr(morfi.checkpoints.checkpoint, "embedded_model", lambda *_: root / "mistral")
    folder = resolve("./smollm2")
    assert resolve(str(root / "adapter")).base_sha256 == folder.sha256
    assert resolve_unmerged(str(root / "adapter"), base=folder).base_sha256 == folder.sha256
    # `morfi train` names bases as --ckpt does, where the preset goes before a folder.
    (root / "adapter" / "manifest.json").write_text("{}")
    assert resolve(str(root / "adapter")).base_sha256 == resolve("smollm2").sha256 != folder.sha256


def weights_that_vllm_reads(folder: Path) -> dict[str, torch.Tensor]:
    """By its rule: the files that an index names, else all."""
    index = folder / "model.safetensors.index.json"
    names = (
        set(json.loads(index.read_text())["weight_map"].values())
        if index.is_file()
        else {path.name for path in folder.glob("*.safetensors")}
    )
    return {key: tensor for name in names for key, tensor in load_file(folder / name).items()}


@pytest.mark.parametrize("beside", ["model.safetensors.index.json", "consolidated.safetensors"])
def test_files_beside_the_weights_are_not_what_vllm_reads(root: Path, cache: Cache, beside: str) -> None:
    plain = resolve(str(root / "base"))
    if beside.endswith(".json"):
        index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
        (root / "base" / beside).write_text(json.dumps(index))
    else:
        save_file({"norm.weight": torch.zeros(32)}, root / "base" / beside)
    found = resolve(str(root / "base"))
    assert found.sha256 == plain.sha256
    assert found.model_dir == resolve(str(root / "base")).model_dir != root / "base"
    read, own = weights_that_vllm_reads(found.model_dir), load_file(root / "base" / "model.safetensors")
    assert read.keys() == own.keys()
    assert all(torch.equal(read[name], own[name]) for name in own)
    assert (found.model_dir / "model.safetensors").is_symlink()
    assert resolve(str(root / "adapter")).sha256
    assert resolve_unmerged(str(root / "adapter"), base=found).base_sha256 == plain.sha256


def test_a_whole_file_beside_a_whole_index_is_refused(root: Path) -> None:
    AutoModelForCausalLM.from_pretrained(root / "base").save_pretrained(
        root / "sharded", max_shard_size="10KB"
    )
    shutil.copyfile(root / "base" / "model.safetensors", root / "sharded" / "model.safetensors")
    with pytest.raises(InputError, match="differ in which of them they load"):
        resolve(str(root / "sharded"))


def test_an_own_head_is_served_untied_whatever_the_configuration_claims(root: Path) -> None:
    configure_model(root / "base", tie_word_embeddings=True)
    found = resolve(str(root / "base"))
    assert found.model_dir != root / "base"
    assert json.loads((found.model_dir / "config.json").read_text())["tie_word_embeddings"] is False
    assert resolve(str(found.model_dir)).sha256 == found.sha256
    base = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
    served = AutoModelForCausalLM.from_pretrained(found.model_dir, dtype=torch.float32)
    torch.testing.assert_close(logits(served), logits(base), atol=0, rtol=0)
    expected = logits(PeftModel.from_pretrained(base, root / "adapter"))
    merged = resolve(str(root / "adapter")).model_dir
    got = logits(AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_what_an_adapter_leaves_alone_is_not_rounded(root: Path) -> None:
    tensors = load_file(root / "base" / "model.safetensors")
    kept = {"model.norm.weight", "model.layers.0.self_attn.q_proj.weight"}
    mixed = {name: x if name in kept else x.bfloat16() for name, x in tensors.items()}
    save_file(mixed, root / "base" / "model.safetensors", {"format": "pt"})
    configure_model(root / "base", dtype="bfloat16")
    merged = load_file(resolve(str(root / "adapter"), dtype="bfloat16").model_dir / "model.safetensors")
    assert torch.equal(merged["model.norm.weight"], tensors["model.norm.weight"])
    assert merged["model.layers.0.self_attn.q_proj.weight"].dtype is torch.float32
    assert merged["model.layers.0.self_attn.v_proj.weight"].dtype is torch.bfloat16


def configure_model(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
