"""SAEs in the files of the public releases load as SAELens loads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import huggingface_hub.errors
import pytest
import torch
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_releases import (
    D_MODEL,
    D_SAE,
    GEMMA,
    LLAMA,
    LLAMA_FACTOR,
    LLAMA_THETA,
    MISTRAL,
    QWEN,
    WRITERS,
    activations,
    check_against_saelens,
    repository,
    weights,
    write_gemma,
    write_llama,
    write_mistral,
)
from safetensors.torch import save_file

from morfi.checkpoints.presets import PRESETS
from morfi.errors import InputError
from morfi.latents.sae import load_sae


def test_llama_scope_folds_the_average_norm_into_weights_and_threshold(hub: Path) -> None:
    made = write_llama(hub / repository(LLAMA))
    ours = load_sae(LLAMA)
    x = activations(norm=1.4)
    found = check_against_saelens(ours, SAE.from_pretrained(*LLAMA.split(":")), x)
    encoder = ours.encoder
    assert (ours.layer, ours.release) == (15, LLAMA)
    assert (encoder.activation, encoder.normalization, encoder.b_dec) == ("jumprelu", "none", None)
    torch.testing.assert_close(encoder.W_enc, made["W_enc"] * LLAMA_FACTOR)
    torch.testing.assert_close(encoder.threshold, torch.full((D_SAE,), LLAMA_THETA * LLAMA_FACTOR))
    pre = (x * LLAMA_FACTOR) @ made["W_enc"] + made["b_enc"]
    latents = torch.where(pre > LLAMA_THETA * LLAMA_FACTOR, pre, 0.0)
    torch.testing.assert_close(found, latents, rtol=1e-3, atol=1e-5)
    decoded = (latents @ made["W_dec"] + made["b_dec"]) / LLAMA_FACTOR
    torch.testing.assert_close(ours.decode(found, x), decoded, rtol=1e-3, atol=1e-4)


def test_gemma_scope_has_a_threshold_for_each_latent(hub: Path) -> None:
    made = write_gemma(hub / repository(GEMMA))
    ours = load_sae(GEMMA)
    x = activations(norm=8.0)
    found = check_against_saelens(ours, SAE.from_pretrained(*GEMMA.split(":")), x)
    encoder = ours.encoder
    assert (ours.layer, ours.release) == (20, GEMMA)
    assert (encoder.activation, encoder.normalization, encoder.b_dec) == ("jumprelu", "none", None)
    assert encoder.threshold is not None
    assert torch.equal(encoder.threshold, made["threshold"])
    pre = x @ made["W_enc"] + made["b_enc"]
    latents = torch.where(pre > made["threshold"], pre, 0.0)
    torch.testing.assert_close(found, latents, rtol=1e-3, atol=1e-5)


def test_mistrals_sae_reads_before_layer_16_and_rescales_each_token(hub: Path) -> None:
    made = write_mistral(hub / repository(MISTRAL))
    ours = load_sae(MISTRAL)
    x = activations(norm=30.0)
    found = check_against_saelens(ours, SAE.from_pretrained(*MISTRAL.split(":")), x)
    encoder = ours.encoder
    assert (ours.layer, ours.release) == (15, MISTRAL)
    assert (encoder.activation, encoder.normalization) == ("relu", "constant_norm_rescale")
    assert encoder.b_dec is None
    assert encoder.threshold is None
    scale = D_MODEL**0.5 / x.norm(dim=1, keepdim=True)
    latents = ((x * scale) @ made["W_enc"] + made["b_enc"]).relu()
    torch.testing.assert_close(found, latents, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(ours.encode(x * 7), found, rtol=1e-3, atol=1e-5)


def test_a_release_whose_sizes_the_hub_is_asked_for_is_read_from_the_hubs_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, sae_id = "gemma-scope-2-4b-pt", "resid_post_all/layer_9_width_16k_l0_small"
    repository_folder = tmp_path / f"models--google--{name}"
    folder = repository_folder / "snapshots" / ("0" * 40) / sae_id
    folder.mkdir(parents=True)
    (repository_folder / "refs").mkdir()
    (repository_folder / "refs" / "main").write_text("0" * 40)
    made = weights() | {"threshold": torch.ones(D_SAE)}
    names = {"W_enc": "w_enc", "W_dec": "w_dec"}
    save_file({names.get(key, key): tensor for key, tensor in made.items()}, folder / "params.safetensors")
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-4b-pt"}
    (folder / "config.json").write_text(json.dumps(config | {"hf_hook_point_in": "model.layers.9.output"}))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def ask(*_: Any) -> Any:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", ask)
    ours = load_sae(f"{name}-res-all:layer_9_width_16k_l0_small")
    assert loaders.get_safetensors_tensor_shapes is ask
    assert (ours.layer, ours.encoder.activation) == (9, "jumprelu")
    assert torch.equal(ours.W_dec, made["W_dec"])
    folder.parent.rename(folder.parent.with_name("attn_out_all"))
    with pytest.raises(InputError, match="reads the attention heads"):
        load_sae(f"{name}-att-all:layer_9_width_16k_l0_small")


@pytest.mark.parametrize("name", [name for name in PRESETS if PRESETS[name].sae in WRITERS])
def test_a_preset_means_its_sae(hub: Path, name: str) -> None:
    source, layer = PRESETS[name].sae, PRESETS[name].sae_layer
    assert source is not None
    WRITERS[source](hub / repository(source))
    found = load_sae(name)
    assert (found.release, found.layer) == (source, layer)
    assert found.sha256 == load_sae(source).sha256


def test_a_release_that_is_a_pickle_says_what_to_do(hub: Path) -> None:
    folder = hub / repository(QWEN) / "resid_post_layer_15" / "trainer_1"
    folder.mkdir(parents=True)
    trainer = {
        "dict_class": "BatchTopKSAE",
        "activation_dim": D_MODEL,
        "dict_size": D_SAE,
        "layer": 15,
        "k": 4,
    }
    config = {"trainer": {**trainer, "lm_name": "Qwen/Qwen2.5-7B-Instruct"}, "buffer": {"ctx_len": 1024}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"ae\.pt .* may be a pickle.*save_model and give that folder"):
        load_sae(QWEN)
    with pytest.raises(InputError, match=r"qwen-2\.5-7b: a preset without an SAE"):
        load_sae("qwen-2.5-7b")


def test_a_preset_without_a_sae_is_refused() -> None:
    with pytest.raises(InputError, match=r"smollm2: a preset without an SAE \(gemma-3-270m, llama-3.1-8b"):
        load_sae("smollm2")
    with pytest.raises(InputError, match='Did you mean "gemma-2-9b"'):
        load_sae("gemma2-9b")


def test_a_release_whose_factor_saelens_does_not_list_is_refused(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_llama(hub / repository(LLAMA))
    release = get_pretrained_saes_directory()[LLAMA.partition(":")[0]]
    monkeypatch.setattr(release, "norm_scaling_factor", {})
    with pytest.raises(InputError, match="expected_average_only_in and was not folded"):
        load_sae(LLAMA)


def test_a_repository_that_saelens_does_not_list_is_read_as_its_own_format(hub: Path) -> None:
    write_mistral(hub / "someone" / "saes")
    found = load_sae("someone/saes:mistral_7b_layer_16")
    assert (found.layer, found.encoder.normalization) == (15, "none")
