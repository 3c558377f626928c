"""SAEs as SAELens' trainers save them: what they encode, their factor, their digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sae_lens
import torch
from sae_lens import SAE
from sae_lens.training.activation_scaler import ActivationScaler
from sae_releases import D_MODEL, D_SAE, activations, check_against_saelens
from safetensors.torch import load_file, save_file

from morfi.errors import InputError
from morfi.latents.sae import load_sae

TRAINED: dict[str, dict[str, Any]] = {
    "Standard": {},
    "Gated": {},
    "JumpReLU": {},
    "TopK": {"k": 6},
    "BatchTopK": {"k": 6},
    "MatryoshkaBatchTopK": {"k": 6, "matryoshka_widths": [48, 96, D_SAE]},
}
ACTIVATION = {"Standard": "relu", "Gated": "gated", "TopK": "topk"}  # the others are saved as JumpReLU


def trained(kind: str, **settings: Any) -> Any:
    """An SAE of SAELens' training class `kind`, with random parameters."""
    config_class = getattr(sae_lens, f"{kind}TrainingSAEConfig")
    config = config_class(d_in=D_MODEL, d_sae=D_SAE, **TRAINED[kind], **settings)
    config.metadata.hook_name = "blocks.4.hook_resid_post"
    sae = getattr(sae_lens, f"{kind}TrainingSAE")(config)
    made = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=made) * 0.1)
            if name == "threshold":
                parameter.abs_()
        if "topk_threshold" in dict(sae.named_buffers()):
            sae.topk_threshold.fill_(0.7)
    return sae


@pytest.mark.parametrize("kind", TRAINED)
def test_what_saelens_trainers_save_encodes_as_trained(tmp_path: Path, kind: str) -> None:
    sae = trained(kind)
    x = activations(norm=8.0)
    with torch.no_grad():
        expected = sae.decode(sae.encode(x))
    sae.save_inference_model(tmp_path)
    ours = load_sae(str(tmp_path))
    found = check_against_saelens(ours, SAE.load_from_disk(tmp_path), x)
    assert ours.encoder.activation == ACTIVATION.get(kind, "jumprelu")
    assert ours.layer == 4
    if "Batch" not in kind:  # in training these keep the most active of the batch, whatever the threshold
        torch.testing.assert_close(ours.decode(found, x), expected, rtol=1e-3, atol=1e-4)


FACTOR = 0.37


@pytest.mark.parametrize("kind", ["Standard", "Gated", "JumpReLU", "TopK"])
def test_a_folder_with_its_factor_is_folded(tmp_path: Path, kind: str) -> None:
    """A checkpoint from within a training: it saw x * factor, and gave x * factor."""
    sae = trained(kind, normalize_activations="expected_average_only_in")
    x = activations(norm=20.0)
    with torch.no_grad():
        decoded = sae.decode(sae.encode(x * FACTOR)) / FACTOR
    sae.save_model(tmp_path)
    ActivationScaler(scaling_factor=FACTOR).save(str(tmp_path / "activation_scaler.json"))
    ours = load_sae(str(tmp_path))
    theirs = SAE.load_from_disk(tmp_path)
    theirs.fold_activation_norm_scaling_factor(FACTOR)
    found = check_against_saelens(ours, theirs, x)
    torch.testing.assert_close(ours.decode(found, x), decoded, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("scaler", "message"),
    [
        (None, "expected_average_only_in and was not folded"),
        ('{"scaling_factor": null, "has_whitening": false}', "expected_average_only_in and was not folded"),
        ('{"scaling_factor": 0}', "expected a positive number"),
        ('{"scaling_factor": NaN}', "expected a positive number"),
        ('{"scaling_factor": "2"}', "no SAE that SAELens can load: TypeError"),
        ("{}", "no SAE that SAELens can load: KeyError"),
        ("", "no SAE that SAELens can load: JSONDecodeError"),
    ],
)
def test_a_folder_without_a_usable_factor_is_refused(
    tmp_path: Path, scaler: str | None, message: str
) -> None:
    trained("Standard", normalize_activations="expected_average_only_in").save_model(tmp_path)
    if scaler is not None:
        (tmp_path / "activation_scaler.json").write_text(scaler)
    with pytest.raises(InputError, match=message):
        load_sae(str(tmp_path))


def test_a_factor_beside_weights_that_need_none_is_left_alone(tmp_path: Path) -> None:
    trained("Standard").save_model(tmp_path)
    unscaled = load_sae(str(tmp_path)).sha256
    ActivationScaler(scaling_factor=FACTOR).save(str(tmp_path / "activation_scaler.json"))
    assert load_sae(str(tmp_path)).sha256 == unscaled


def test_the_digest_is_of_what_is_computed(tmp_path: Path) -> None:
    sae = trained("Gated")
    sae.save_inference_model(tmp_path / "a")
    sae.cfg.metadata.hook_name = "blocks.9.hook_resid_post"
    sae.save_inference_model(tmp_path / "b")
    a, b = load_sae(str(tmp_path / "a")), load_sae(str(tmp_path / "b"))
    assert (a.layer, b.layer) == (4, 9)
    assert a.sha256 == b.sha256
    assert len(a.sha256) == 64


def test_the_digest_changes_with_each_tensor_and_setting(tmp_path: Path) -> None:
    trained("JumpReLU").save_inference_model(tmp_path)
    digests = [load_sae(str(tmp_path)).sha256]
    path, config = tmp_path / "sae_weights.safetensors", tmp_path / "cfg.json"
    kept = load_file(path)
    for name in kept:
        changed = {**kept, name: kept[name].clone()}
        changed[name].view(-1)[-1] += 1e-3
        save_file(changed, path)
        digests.append(load_sae(str(tmp_path)).sha256)
    save_file(kept, path)
    assert load_sae(str(tmp_path)).sha256 == digests[0]
    for setting in ({"normalize_activations": "layer_norm"}, {"apply_b_dec_to_input": False}):
        config.write_text(json.dumps({**json.loads(config.read_text()), **setting}))
        digests.append(load_sae(str(tmp_path)).sha256)
    assert len(set(digests)) == len(digests) == 8


@pytest.mark.parametrize("k", [3, 4])
def test_a_sae_for_which_only_k_differs_has_its_own_digest(tmp_path: Path, k: int) -> None:
    trained("TopK").save_inference_model(tmp_path)
    whole = load_sae(str(tmp_path)).sha256
    config = tmp_path / "cfg.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "k": k}))
    assert load_sae(str(tmp_path)).sha256 != whole


def test_embeddings_are_no_layers_output(tmp_path: Path) -> None:
    sae = trained("Standard")
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_pre"
    sae.save_inference_model(tmp_path)
    with pytest.raises(InputError, match="reads the embeddings"):
        load_sae(str(tmp_path))
