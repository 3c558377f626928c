"""SAEs as SAELens saves them encode and decode as SAELens does, or are refused."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file

from morfi.engine.directions import DecoderRows
from morfi.errors import InputError
from morfi.latents.sae import from_sae_lens, load_sae

D_MODEL, D_SAE = 16, 48
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
    "topk": (TopKSAE, TopKSAEConfig, {"k": 6, "rescale_acts_by_decoder_norm": False}),
    "topk-rescaled": (TopKSAE, TopKSAEConfig, {"k": 6, "rescale_acts_by_decoder_norm": True}),
}


def make_sae(kind: str, hook: str = "blocks.5.hook_resid_post", **settings: Any) -> Any:
    sae_class, config_class, own = KINDS[kind]
    metadata = SAEMetadata(hook_name=hook, model_name="tiny")
    torch.manual_seed(0)
    sae = sae_class(config_class(d_in=D_MODEL, d_sae=D_SAE, metadata=metadata, **own, **settings))
    with torch.no_grad():
        for name, parameter in sae.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if name == "r_mag" else 0.5))
            if name == "threshold":
                parameter.abs_()
    return sae


def test_the_digest_is_of_what_is_computed_and_not_of_how() -> None:
    sae = from_sae_lens(make_sae("standard"), "random")
    other = replace(sae, encoder=replace(sae.encoder, way="library"))
    assert other.sha256 == sae.sha256
    assert replace(sae, b_dec=sae.b_dec + 1).sha256 != sae.sha256


@pytest.mark.parametrize(
    ("kind", "normalization", "apply_b_dec"),
    list(itertools.product(KINDS, ["none", "constant_norm_rescale", "layer_norm"], [True, False])),
)
def test_a_saved_sae_encodes_and_decodes_as_in_saelens(
    tmp_path: Path, kind: str, normalization: str, apply_b_dec: bool
) -> None:
    theirs = make_sae(kind, normalize_activations=normalization, apply_b_dec_to_input=apply_b_dec)
    theirs.save_model(tmp_path / "sae")
    ours = load_sae(str(tmp_path / "sae"))
    x = torch.randn(40, D_MODEL, generator=torch.Generator().manual_seed(1)) * 3 + 1
    with torch.no_grad():
        latents = theirs.encode(x)
        decoded = theirs.decode(latents)
    assert 0 < int((latents > 0).sum()) < latents.numel()
    found = ours.encode(x)
    assert torch.equal(found > 0, latents > 0)
    if kind == "topk-rescaled":  # the decoder's norms are folded into W_dec, not into the latents
        assert torch.allclose(ours.W_dec.norm(dim=1), torch.ones(D_SAE))
    torch.testing.assert_close(found, latents, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.decode(found, x), decoded, rtol=1e-3, atol=1e-3)
    assert ours.layer == 5


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.16.hook_resid_pre", 15),
        ("blocks.20.hook_resid_post", 20),
        ("blocks.0.hook_resid_post", 0),
        ("blocks.4.hook_out", 4),
        ("blocks.4.hook_in", 3),
        ("model.layers.9.output", 9),
        ("model.layers.9", 9),
        ("transformer.h.3", 3),
        ("", None),
    ],
)
def test_the_layer_is_the_one_whose_output_is_read(hook: str, layer: int | None) -> None:
    assert from_sae_lens(make_sae("standard", hook), "here").layer == layer


@pytest.mark.parametrize(
    ("hook", "what"),
    [
        ("blocks.5.hook_mlp_out", "an MLP"),
        ("blocks.5.mlp.hook_in", "an MLP"),
        ("model.layers.5.mlp", "an MLP"),
        ("model.layers.5.post_feedforward_layernorm.output", "an MLP"),
        ("blocks.5.hook_attn_out", "attention"),
        ("model.layers.5.self_attn.o_proj.input", "attention"),
        ("blocks.5.attn.hook_z", "the attention heads"),
        ("blocks.5.hook_resid_mid", "the middle of a layer"),
        ("blocks.5.ln2.hook_normalized", "a layer norm"),
        ("blocks.0.hook_resid_pre", "the embeddings, which come before layer 0"),
        ("hook_embed", "the embeddings"),
        ("ln_final.hook_normalized", "a layer norm"),
        ("blocks.5.somewhere", "a place that is not known"),
    ],
)
def test_an_sae_of_anything_but_the_residual_stream_is_refused_by_name(
    tmp_path: Path, hook: str, what: str
) -> None:
    sae = make_sae("standard", hook)
    if sae.cfg.reshape_activations == "none":
        sae.save_model(tmp_path / "sae")
        with pytest.raises(InputError, match=rf"the SAE reads {what}.* \({re.escape(hook)}\), not the resid"):
            load_sae(str(tmp_path / "sae"))
    with pytest.raises(InputError, match=rf"the SAE reads {what}.*take one of blocks\.N\.hook_resid_post"):
        from_sae_lens(sae, "here")


def _write(folder: Path, names: str, **config: Any) -> Path:
    """A folder with these files, empty but for cfg.json."""
    folder.mkdir(parents=True)
    for name in names.split():
        (folder / name).write_text(json.dumps(config) if name == "cfg.json" else "")
    return folder


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("cfg.json sae.safetensors", r"format of sparsify \(sae\.safetensors\).*make an SAE of SAELens"),
        ("params.npz", r"format of Gemma Scope \(params\.npz\).*RELEASE:ID"),
        ("params.safetensors config.json", r"format of Gemma Scope 2 .*RELEASE:ID"),
        ("hyperparams.json", r"format of Llama Scope .*RELEASE:ID"),
        ("ae.pt config.json", r"format of dictionary_learning, a pickle.*save_model"),
        ("conf.yaml latest_ckpt.safetensors", r"format of temporal SAEs .*take another"),
        ("sae.bin", r"sae\.bin may be a pickle.*save_model"),
        ("cfg.json", r"no SAE, for sae_weights\.safetensors as SAELens writes"),
        ("", r"no SAE, for cfg\.json and sae_weights\.safetensors"),
    ],
)
def test_a_folder_of_another_tool_is_named_with_what_to_do(tmp_path: Path, names: str, said: str) -> None:
    folder = _write(tmp_path / "one" / "layers.10", names, d_in=16, k=8, num_latents=48)
    with pytest.raises(InputError, match=said) as caught:
        load_sae(str(folder))
    assert "\n" not in str(caught.value)
    if "Gemma" in said or "sparsify" in said:
        with pytest.raises(InputError, match=r"a folder of them; give one of them, such as .*layers\.10"):
            load_sae(str(folder.parent))


def test_the_documented_way_makes_a_readable_folder_of_sparsifys_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(0)
    folder = _write(tmp_path / "layers.10", "")
    tensors = {
        "encoder.weight": torch.randn(D_SAE, D_MODEL, generator=draw),
        "encoder.bias": torch.randn(D_SAE, generator=draw),
        "W_dec": torch.randn(D_SAE, D_MODEL, generator=draw),
        "b_dec": torch.randn(D_MODEL, generator=draw),
    }
    save_file(tensors, folder / "sae.safetensors")
    document = (Path(__file__).parents[2] / "docs" / "trends.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(from sae_lens import TopKSAE.*?)```", document, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {"d_model": D_MODEL, "d_sae": D_SAE})
    found = load_sae(str(tmp_path / "my-sae"))
    assert (found.layer, found.encoder.k) == (10, 32)
    x = torch.randn(20, D_MODEL, generator=draw)
    latents = torch.relu(x @ tensors["encoder.weight"].T + tensors["encoder.bias"])
    kept = latents >= latents.topk(32, dim=1).values[:, -1:]
    torch.testing.assert_close(found.encode(x), latents * kept)


def test_what_saelens_cannot_have_written_is_refused(tmp_path: Path) -> None:
    make_sae("topk").save_model(tmp_path / "sae")
    path = tmp_path / "sae" / "cfg.json"
    config = json.loads(path.read_text())
    for k in (0, D_SAE + 1, 500):
        path.write_text(json.dumps({**config, "k": k}))
        with pytest.raises(
            InputError, match=f"keeps k = {k} latents per token of d_sae = 48; expected 1 to 48"
        ):
            load_sae(str(tmp_path / "sae"))
    for kind in ("temporal", "transcoder", "unheard-of", None):
        path.write_text(json.dumps({**config, "architecture": kind}))
        with pytest.raises(InputError, match=rf"an SAE of architecture {kind}; standard, gated"):
            load_sae(str(tmp_path / "sae"))
    for text in ("", "[]", "{", "null"):
        path.write_text(text)
        with pytest.raises(InputError):
            load_sae(str(tmp_path / "sae"))
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "dtype"}))
    with pytest.raises(InputError, match="no SAE that SAELens can load"):
        load_sae(str(tmp_path / "sae"))


def test_what_would_differ_from_saelens_is_refused(tmp_path: Path) -> None:
    sae = make_sae("standard")
    sae.save_model(tmp_path / "sae")
    path = tmp_path / "sae" / "cfg.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "normalize_activations": "expected_average_only_in"}))
    with pytest.raises(InputError, match="expected_average_only_in and was not folded"):
        load_sae(str(tmp_path / "sae"))
    path.write_text(json.dumps(config))
    weights = tmp_path / "sae" / "sae_weights.safetensors"
    tensors = load_file(weights)
    tensors["W_dec"][3, 3] = float("nan")
    save_file(tensors, weights)
    with pytest.raises(InputError, match="W_dec holds NaN"):
        load_sae(str(tmp_path / "sae"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="no SAE that SAELens can load"):
        load_sae(str(tmp_path / "sae"))


@pytest.mark.long
def test_a_source_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_sae(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="SAELens could not load"):
        load_sae("no-such-release:id")


def test_saelens_pretrained_releases_of_the_three_models_exist() -> None:
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    assert "l15r_8x" in known["llama_scope_lxr_8x"].saes_map
    assert "layer_20/width_16k/canonical" in known["gemma-scope-9b-pt-res-canonical"].saes_map
    assert "blocks.16.hook_resid_pre" in known["mistral-7b-res-wg"].saes_map


@pytest.mark.parametrize(
    ("kind", "normalization", "apply_b_dec"),
    list(
        itertools.product(["standard", "jumprelu", "gated"], ["none", "constant_norm_rescale"], [True, False])
    ),
)
def test_the_directions_of_a_sae_compute_its_latents(
    kind: str, normalization: str, apply_b_dec: bool
) -> None:
    sae = from_sae_lens(
        make_sae(kind, normalize_activations=normalization, apply_b_dec_to_input=apply_b_dec), "made"
    )
    x = torch.randn(64, D_MODEL) * 3
    found = sae.directions()
    scaled = x * (D_MODEL**0.5 / x.norm(dim=1, keepdim=True)) if found.norm_rescaled else x
    p = scaled @ found.encoders.T + found.biases
    expected = sae.encode(x)
    assert 0 < int((expected > 0).sum()) < expected.numel()
    torch.testing.assert_close(torch.where(p > found.thresholds, p, 0.0), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.vectors, sae.W_dec)


@pytest.mark.parametrize(("kind", "normalization"), [("topk", "none"), ("standard", "layer_norm")])
def test_latents_that_cannot_be_computed_one_by_one_are_no_directions(kind: str, normalization: str) -> None:
    sae = from_sae_lens(make_sae(kind, normalize_activations=normalization), "made")
    with pytest.raises(InputError, match="one by one"):
        sae.directions()


def test_decoder_rows_are_directions_of_length_1_for_any_sae() -> None:
    sae = from_sae_lens(make_sae("topk"), "made")
    assert not sae.has_own_latents
    rows = sae.decoder_rows()
    assert rows.sha256 == sae.decoder_rows().sha256 != DecoderRows(-rows.vectors).sha256
    direction = rows.direction(3)
    assert direction.encoder is None
    torch.testing.assert_close(direction.vector, sae.W_dec[3] / sae.W_dec[3].norm())
    with pytest.raises(InputError, match="latents 0 to"):
        rows.direction(len(rows.vectors))
    with pytest.raises(InputError, match=r"expected \[d_sae, d_model\]"):
        DecoderRows(rows.vectors[0])
    with pytest.raises(InputError, match="finite"):
        DecoderRows(rows.vectors / 0)
