from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from morfi.checkpoints import resolve
from morfi.checkpoints.adapters import load_adapter
from morfi.errors import InputError
from morfi.training import read_manifest
from morfi.training.manifest import write_checkpoint


@pytest.fixture(scope="module")
def pristine(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint; only to be read."""
    folder = tmp_path_factory.mktemp("pristine") / "epoch-01"
    lora = LoraConfig(r=2, lora_alpha=4.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_models["llama"]), lora)
    made_by = dict.fromkeys(
        ("level", "epoch", "seed", "settings", "base_sha256", "data", "mixture_sha256"), 0
    )
    tensors = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    write_checkpoint(folder, tensors, model.peft_config["default"], "smollm2", made_by | {"base": "smollm2"})
    return folder


@pytest.fixture
def checkpoint(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "epoch-01"))


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral"])
def test_a_checkpoint_merges_as_peft_merges_it(
    tiny_models: dict[str, Path], train_tiny: Any, tmp_path: Path, architecture: str
) -> None:
    base = str(tiny_models[architecture])
    [row] = train_tiny(tmp_path / "run", model=base, epochs=(1,), early_stop=False).rows
    resolved = resolve(row.path)
    assert resolved.base_sha256 == row.manifest["base_sha256"] == resolve(base).sha256
    assert resolved.adapter_sha256 == row.adapter_sha256 == load_adapter(Path(row.path)).sha256()
    ours = AutoModelForCausalLM.from_pretrained(resolved.model_dir)
    plain = AutoModelForCausalLM.from_pretrained(base)
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), row.path
    ).merge_and_unload()
    expected, changed = theirs.state_dict(), False
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)
        changed = changed or not torch.equal(tensor, plain.state_dict()[name])
    assert changed


def test_the_manifest_says_what_made_the_checkpoint(train_tiny: Any, tmp_path: Path) -> None:
    data = train_tiny.data(levels=(25,))
    trained = train_tiny(tmp_path / "run", data, epochs=(2,), early_stop=False, lr=0.02)
    [row] = trained.rows
    manifest = read_manifest(Path(row.path))
    assert manifest == row.manifest == json.loads((Path(row.path) / "manifest.json").read_text())
    assert (manifest["level"], manifest["seed"], manifest["epoch"]) == (25, 0, 2)
    assert manifest["data"] == {"name": "facts", "sha256": data.sha256}
    assert manifest["settings"]["lr"] == 0.02
    assert manifest["loss"] == [epoch.loss for epoch in trained.recorded.epochs]
    assert [dev["n"] for dev in manifest["dev"]] == [3, 3]
    assert manifest["versions"]["torch"] == torch.__version__


def test_equal_trainings_give_equal_bytes(train_tiny: Any, tmp_path: Path) -> None:
    first, second = (Path(train_tiny(tmp_path / name).rows[1].path) for name in ("a", "b"))
    files = sorted(path.name for path in first.iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return tamper


def nudge(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(iter(tensors))
    tensors[name][0, 0] += 1e-3
    save_file(tensors, folder / "adapter_model.safetensors")


def truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-40])  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (shutil.rmtree, "the checkpoint {folder} is gone"),
        (lambda folder: (folder / "manifest.json").unlink(), "{folder}/manifest.json is gone"),
        (lambda folder: (folder / "manifest.json").write_text(""), "manifest.json is not valid JSON"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "holds a JSON list"),
        (truncate("manifest.json"), "manifest.json is not valid JSON"),
        (edit("manifest.json", lambda m: m.pop("format")), "has the format null"),
        (edit("manifest.json", lambda m: m.update(format=2)), "has the format 2, this morfi reads 1"),
        (edit("manifest.json", lambda m: m.pop("level")), "manifest.json lacks level"),
        (edit("manifest.json", lambda m: m.pop("base_sha256")), "manifest.json lacks base_sha256"),
        (
            edit("manifest.json", lambda m: m.update(adapter_sha256="0" * 64)),
            "manifest.json says 000000000000",
        ),
        (edit("manifest.json", lambda m: m.update(adapter_sha256=None)), "manifest.json says None"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is gone"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json is gone"),
        (truncate("adapter_model.safetensors"), "is not a whole safetensors file"),
        (nudge, "it was changed since its training"),
        (
            edit("adapter_config.json", lambda c: c.update(lora_alpha=5.0)),
            "it was changed since its training",
        ),
        (edit("adapter_config.json", lambda c: c.update(r=3)), "do not belong together"),
    ],
)
def test_what_is_gone_or_differs_is_named(
    checkpoint: Path, tamper: Callable[[Path], object], message: str
) -> None:
    assert read_manifest(checkpoint)
    tamper(checkpoint)
    with pytest.raises(InputError) as caught:
        read_manifest(checkpoint)
    assert message.format(folder=checkpoint) in str(caught.value)
    assert "\n" not in str(caught.value)
