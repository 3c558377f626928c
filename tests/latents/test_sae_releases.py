"""SAEs in the files of the public releases, and as trainers save them, load as SAELens loads them."""

from __future__ import annotations

import inspect
import json
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import huggingface_hub.errors
import numpy as np
import pytest
import sae_lens
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from sae_lens import SAE
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file, save_file

from morfi.checkpoints.presets import PRESETS
from morfi.errors import InputError
from morfi.latents.sae import Sae, load_sae

D_MODEL, D_SAE = 64, 192
LLAMA = "llama_scope_lxr_8x:l15r_8x"
GEMMA = "gemma-scope-9b-pt-res-canonical:layer_20/width_16k/canonical"
MISTRAL = "mistral-7b-res-wg:blocks.16.hook_resid_pre"
LLAMA_THETA = 0.52734375
# Of l15r_8x: 64 / 10.8125, sqrt(d_model) over the average norm.
LLAMA_FACTOR = 5.91907514450867


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made)

    return {
        "W_enc": draw(D_MODEL, D_SAE) / 8,
        "W_dec": draw(D_SAE, D_MODEL) / 8,
        "b_enc": draw(D_SAE) * 0.5,
        "b_dec": draw(D_MODEL),
    }


def activations(norm: float) -> torch.Tensor:
    x = torch.randn(50, D_MODEL, generator=torch.Generator().manual_seed(1))
    return x * norm / math.sqrt(D_MODEL) + 0.1


def write_llama(repo: Path) -> dict[str, torch.Tensor]:
    """Writes fnlp/Llama3_1-8B-Base-LXR-8x: bfloat16 linear layers, and one threshold for all latents."""
    made = {name: tensor.bfloat16() for name, tensor in weights().items()}
    folder = repo / "Llama3_1-8B-Base-L15R-8x"
    (folder / "checkpoints").mkdir(parents=True)
    norm = D_MODEL**0.5 / LLAMA_FACTOR
    hyperparameters = {
        "hook_point_in": "blocks.15.hook_resid_post",
        "hook_point_out": "blocks.15.hook_resid_post",
        "d_model": D_MODEL,
        "d_sae": D_SAE,
        "act_fn": "jumprelu",
        "jump_relu_threshold": LLAMA_THETA,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": norm, "out": norm},
        "use_decoder_bias": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "sparsity_include_decoder_norm": True,
        "top_k": 50,
    }
    (folder / "hyperparams.json").write_text(json.dumps(hyperparameters))
    saved = {
        "encoder.weight": made["W_enc"].T.contiguous(),
        "encoder.bias": made["b_enc"],
        "decoder.weight": made["W_dec"].T.contiguous(),
        "decoder.bias": made["b_dec"],
    }
    save_file(saved, folder / "checkpoints" / "final.safetensors")
    return {name: tensor.float() for name, tensor in made.items()}


def write_gemma(repo: Path, **more: Any) -> dict[str, torch.Tensor]:
    """Writes google/gemma-scope-9b-pt-res: one params.npz, a threshold for each latent."""
    made = {**weights(), "threshold": torch.rand(D_SAE, generator=torch.Generator().manual_seed(2)) * 2}
    folder = repo / "layer_20" / "width_16k" / "average_l0_68"
    folder.mkdir(parents=True)
    saved = {name: tensor.numpy() for name, tensor in made.items()}
    np.savez(folder / "params.npz", **{**saved, **more})
    return made


def write_mistral(repo: Path) -> dict[str, torch.Tensor]:
    """Writes JoshEngels/Mistral-7B-Residual-Stream-SAEs: SAELens' files, before its version 6."""
    made = weights()
    folder = repo / "mistral_7b_layer_16"
    folder.mkdir(parents=True)
    config = {
        "d_in": D_MODEL,
        "d_sae": D_SAE,
        "activation_fn_str": "relu",
        "apply_b_dec_to_input": False,
        "finetuning_scaling_factor": False,
        "context_size": 256,
        "model_name": "mistral-7b",
        "hook_name": "blocks.16.hook_resid_pre",
        "hook_layer": 16,
        "hook_head_index": None,
        "prepend_bos": False,
        "dataset_path": "monology/pile-uncopyrighted",
        "dataset_trust_remote_code": True,
        "normalize_activations": False,
        "dtype": "float32",
        "device": "cpu",
        "sae_lens_training_version": None,
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(made, folder / "sae_weights.safetensors")
    return made


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the hub's repositories as SAELens sees them."""

    def fetch(repo_id: str, filename: str, *, subfolder: str | None = None, **_: Any) -> str:
        path = tmp_path / repo_id / (subfolder or "") / filename
        if not path.is_file():
            raise EntryNotFoundError(f"no {filename}")
        return str(path)

    monkeypatch.setattr(loaders, "hf_hub_download", fetch)
    # The sizes of Gemma's SAEs stand in SAELens, not in the release's files.
    gemma = get_pretrained_saes_directory()[GEMMA.partition(":")[0]]
    monkeypatch.setattr(gemma, "config_overrides", {"d_in": D_MODEL, "d_sae": D_SAE})
    return tmp_path


def repository(source: str) -> str:
    found: str = get_pretrained_saes_directory()[source.partition(":")[0]].repo_id
    return found


def check_against_saelens(ours: Sae, theirs: Any, x: torch.Tensor) -> torch.Tensor:
    """The latents of x, after they and what they decode to were found to be those of SAELens."""
    with torch.no_grad():
        latents = theirs.encode(x)
        decoded = theirs.decode(latents)
    assert 0 < int((latents > 0).sum()) < latents.numel()
    found = ours.encode(x)
    assert torch.equal(found > 0, latents > 0)
    torch.testing.assert_close(found, latents, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(ours.decode(found, x), decoded, rtol=1e-3, atol=1e-4)
    return found


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


WRITERS: Mapping[str, Callable[[Path], dict[str, torch.Tensor]]] = {
    LLAMA: write_llama,
    GEMMA: write_gemma,
    MISTRAL: write_mistral,
}


@pytest.mark.parametrize("name", [name for name in PRESETS if PRESETS[name].sae])
def test_a_preset_means_its_sae(hub: Path, name: str) -> None:
    source, layer = PRESETS[name].sae, PRESETS[name].sae_layer
    assert source is not None
    WRITERS[source](hub / repository(source))
    found = load_sae(name)
    assert (found.release, found.layer) == (source, layer)
    assert found.sha256 == load_sae(source).sha256


def test_a_preset_without_a_sae_is_refused() -> None:
    with pytest.raises(InputError, match=r"smollm2: a preset without an SAE \(llama-3.1-8b, gemma-2-9b"):
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


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_an_npz_with_pickled_objects_is_refused_unread(hub: Path, tmp_path: Path) -> None:
    write_gemma(hub / repository(GEMMA), b_enc=np.array([Bomb(tmp_path / "boom")], dtype=object))
    with pytest.raises(InputError, match="allow_pickle=False"):
        load_sae(GEMMA)
    assert not (tmp_path / "boom").exists()


def test_a_pickle_under_another_name_is_refused_unread(hub: Path, tmp_path: Path) -> None:
    write_gemma(hub / repository(GEMMA))
    write_mistral(hub / repository(MISTRAL))
    for source, name in ((GEMMA, "params.npz"), (MISTRAL, "sae_weights.safetensors")):
        (path,) = (hub / repository(source)).rglob(name)
        path.write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
        with pytest.raises(InputError, match="SAELens could not load"):
            load_sae(source)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("source", [LLAMA, GEMMA, MISTRAL])
@pytest.mark.parametrize("keep", [0, 200])
def test_files_cut_short_are_refused(hub: Path, source: str, keep: int) -> None:
    WRITERS[source](hub / repository(source))
    (path,) = (
        path for path in (hub / repository(source)).rglob("*") if path.suffix in (".npz", ".safetensors")
    )
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="SAELens could not load"):
        load_sae(source)


PICKLED = sorted(
    name
    for name, loader in loaders.NAMED_PRETRAINED_SAE_LOADERS.items()
    if "torch.load" in inspect.getsource(loader)
)
# What the loaders of pickles read in the JSON beside them.
CONFIG = {
    "act_size": 8,
    "dict_size": 16,
    "act_name": "blocks.1.hook_resid_post",
    "trainer": {
        "layer": 1,
        "dict_class": "AutoEncoder",
        "activation_dim": 8,
        "dict_size": 16,
        "lm_name": "a/b",
    },
    "buffer": {"ctx_len": 4},
}


def test_saelens_has_loaders_that_unpickle() -> None:
    assert "goodfire" in PICKLED


@pytest.mark.parametrize("loader", PICKLED)
def test_a_release_of_pickles_is_refused_before_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: str
) -> None:
    known = get_pretrained_saes_directory().values()
    release = next(each for each in known if each.conversion_func == loader)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    fetched: list[str] = []

    def fetch(repo_id: str, filename: str, **_: Any) -> str:
        fetched.append(filename)
        return str(tmp_path / "config.json")

    monkeypatch.setattr(loaders, "hf_hub_download", fetch)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(InputError, match="may be a pickle, which can run code") as caught:
        load_sae(f"{release.release}:{next(iter(release.saes_map))}")
    assert "\n" not in str(caught.value)
    assert all(Path(name).suffix == ".json" for name in fetched)
    assert loaders.hf_hub_download is fetch


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("An error happened\nwhile trying to locate the file"),
        EntryNotFoundError("no such file"),
        huggingface_hub.errors.HTTPError("cut off"),  # type: ignore[attr-defined]  # its client's
        ConnectionError("refused"),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_hub_does_not_give_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fetch(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(loaders, "hf_hub_download", fetch)
    with pytest.raises(InputError, match="could not be fetched from the hub") as caught:
        load_sae(LLAMA)
    message = str(caught.value)
    assert message.startswith(LLAMA)
    assert "\n" not in message
    assert 'hf download fnlp/Llama3_1-8B-Base-LXR-8x --include "Llama3_1-8B-Base-L15R-8x/*"' in message


def test_offline_with_an_empty_cache_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for source in (LLAMA, GEMMA, MISTRAL):
        with pytest.raises(InputError, match="could not be fetched from the hub") as caught:
            load_sae(source)
        assert "\n" not in str(caught.value)


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
