"""From vLLM to the report: tiny models of the paper's architectures, SAEs in their releases' own files."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sae_lens
import sae_releases as releases
import torch

from morfi.errors import InputError
from morfi.latents.activations import Activations, load_activations
from morfi.latents.capture import CaptureConfig, run_capture
from morfi.latents.find import FindConfig, run_find
from morfi.latents.sae import load_sae
from morfi.report.runs import report_of
from morfi.serve.engine import start_engine

SIZES = {
    "vocab_size": 259,
    "hidden_size": releases.D_MODEL,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,  # Gemma's own is token 0, the first of every text here, and embedded as zero
    "initializer_range": 0.1,
}
# Deep enough to have the layer that the release's SAE reads.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (releases.LLAMA, {"num_hidden_layers": 17}),
    "gemma2": (
        releases.GEMMA,
        {"num_hidden_layers": 22, "query_pre_attn_scalar": 32, "sliding_window": 64},
    ),
    "mistral": (releases.MISTRAL, {"num_hidden_layers": 17, "sliding_window": None}),
}


def save_model(directory: Path, family: str, settings: dict[str, Any], tokenizer: Any) -> Path:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **SIZES, **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@dataclass(frozen=True)
class Tuned:
    """A train run of a tiny model, and the SAE that is read from its release's files."""

    store: Any
    train_run: str
    model: Path
    tokenizer: Any
    source: str
    out: Path


@pytest.fixture(params=list(FAMILIES))
def tuned(
    request: pytest.FixtureRequest, hub: Path, isolated_cache: Path, tmp_path: Path, data_file: Path
) -> Tuned:
    source, settings = FAMILIES[request.param]
    tokenizer = request.getfixturevalue("make_tokenizer")()
    model = save_model(tmp_path / "model", request.param, settings, tokenizer)
    releases.WRITERS[source](hub / releases.repository(source))
    experiment, train_run = request.getfixturevalue("train_experiment")(tmp_path, model, data_file)
    return Tuned(experiment.store, train_run, model, tokenizer, source, tmp_path / "out")


@pytest.mark.usefixtures("starts_vllm")
def test_captured_found_and_reported(tuned: Tuned, log: Any) -> None:
    store, source = tuned.store, tuned.source
    layer = load_sae(source).layer
    assert layer is not None
    start = functools.partial(start_engine, verbose=False)
    config = CaptureConfig(tuned.train_run, (layer,), dtype="float32")
    captured = run_capture(config, store, start, tuned.out, log, new=False, command="morfi capture")
    assert captured.failures == ()
    held = load_activations(store, captured.run_id, layer)
    last = held.residuals[-1].values
    expected = of_transformers(tuned, held)
    torch.testing.assert_close(last, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max()))

    find = FindConfig(captured.run_id, source, method="bootstrap", resamples=20, force=True)
    found = run_find(find, store, log, new=False, command="morfi find")
    theirs = sae_lens.SAE.from_pretrained(*source.split(":"))
    with torch.no_grad():
        means = torch.stack([theirs.encode(one.values).mean(0) for one in held.residuals], 1)
    rows = sorted(store.latents(found).to_pylist(), key=lambda row: row["latent"])
    assert len(rows) == releases.D_SAE
    assert float(means.max()) > 0
    torch.testing.assert_close(torch.tensor([row["means"] for row in rows]), means, rtol=1e-3, atol=1e-4)
    assert f"layer {layer}, 10 questions, 3 conditions of 3 levels" in report_of(store, found).text
    # A random SAE explains nothing of this model.
    with pytest.raises(InputError, match=r"of the variance of M_\d+, seed 0"):
        run_find(FindConfig(captured.run_id, source), store, log, new=False, command="morfi find")


def of_transformers(tuned: Tuned, held: Activations) -> torch.Tensor:
    """The residual stream of the last condition at the last token of each prompt, [n, d_model]."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    row = held.residuals[-1].row
    checkpoints = tuned.store.checkpoints(tuned.train_run)
    [adapter] = [
        one.path for one in checkpoints if (one.level, one.epoch_setting) == (row.level, row.epoch_setting)
    ]
    base = AutoModelForCausalLM.from_pretrained(tuned.model, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, adapter).eval()
    found = []
    for question in held.questions:
        prompt = tuned.tokenizer(f"Q: {question.text}\nA:", return_tensors="pt")
        with torch.inference_mode():
            found.append(model(**prompt, output_hidden_states=True).hidden_states[held.layer + 1][0, -1])
    return torch.stack(found)
