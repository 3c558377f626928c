"""The files of the public releases of SAEs, small and random, and the check against SAELens."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from safetensors.torch import save_file

from morfi.latents.sae import Sae

D_MODEL, D_SAE = 64, 192
LLAMA = "llama_scope_lxr_8x:l15r_8x"
GEMMA = "gemma-scope-9b-pt-res-canonical:layer_20/width_16k/canonical"
MISTRAL = "mistral-7b-res-wg:blocks.16.hook_resid_pre"
GEMMA_3 = "gemma-scope-2-1b-pt-res:layer_13_width_16k_l0_medium"
GEMMA_3_SMALL = "gemma-scope-2-270m-pt-res:layer_12_width_16k_l0_medium"
QWEN = "qwen2.5-7b-instruct-andyrdt:resid_post_layer_15_trainer_1"  # a pickle
LLAMA_THETA = 0.52734375
# Of l15r_8x: 64 / 10.8125, sqrt(d_model) over the average norm.
LLAMA_FACTOR = 5.91907514450867


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random parameters by SAELens' names."""
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
    """Fifty residuals of about that norm, [50, d_model]."""
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


def write_gemma_3(repo: Path) -> dict[str, torch.Tensor]:
    """Writes a repository of google/gemma-scope-2: a folder for each SAE, with its configuration."""
    source = next(one for one in (GEMMA_3, GEMMA_3_SMALL) if repository(one).endswith(repo.name))
    made = {**weights(), "threshold": torch.rand(D_SAE, generator=torch.Generator().manual_seed(2)) * 2}
    folder = repo / "resid_post" / source.partition(":")[2]
    folder.mkdir(parents=True)
    names = {"W_enc": "w_enc", "W_dec": "w_dec"}
    save_file({names.get(key, key): tensor for key, tensor in made.items()}, folder / "params.safetensors")
    config = {"architecture": "jump_relu", "model_name": repo.name.replace("scope-2", "v3")}
    (folder / "config.json").write_text(json.dumps(config))
    return made


def repository(source: str) -> str:
    """The hub's repository of a release."""
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


WRITERS: Mapping[str, Callable[[Path], dict[str, torch.Tensor]]] = {
    LLAMA: write_llama,
    GEMMA: write_gemma,
    MISTRAL: write_mistral,
    GEMMA_3: write_gemma_3,
    GEMMA_3_SMALL: write_gemma_3,
}
