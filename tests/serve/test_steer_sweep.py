"""A steer run through vLLM answers word for word as transformers with forward hooks does, in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from morfi.checkpoints import resolve
from morfi.checkpoints.tokenizer import load_tokenizer
from morfi.interventions import SteerConfig, run_steer
from morfi.interventions.outcome import steered
from morfi.latents.capture import CaptureConfig, run_capture
from morfi.latents.find import FindConfig, run_find
from morfi.questions.prompts import ASKED
from morfi.serve.engine import start_engine
from morfi.store import Store
from morfi.training.train import run_train

D_MODEL, LAYER, N_TOKENS = 64, 0, 6
IDS = (3, 7, 11)
ROWS = """
SELECT s.*, d.kind, d.latent, d.operation, d.median_norm, d.parts, d.layer, q.question FROM steered_answer s
JOIN run r ON r.run_id = s.run_id
JOIN question q ON q.data_sha256 = r.data_sha256 AND q.question_id = s.question_id
LEFT JOIN steer_direction d ON d.run_id = s.run_id AND d.direction = s.direction
WHERE s.run_id = '{}' AND s.served = 'checkpoint'
"""


@dataclass
class Found:
    """A find run of a tiny model; M_100 and M_0 in transformers; the SAE's tensors as saved."""

    store: Store
    find_run: str
    models: Mapping[int, Any]  # by level
    tokenizer: Any
    sae: Mapping[str, torch.Tensor]
    dev: Sequence[str]
    log: Any

    def residuals(self, level: int) -> torch.Tensor:
        """The residual stream after the layer at the last token of each dev prompt, [n, d_model]."""
        rows = []
        with torch.no_grad():
            for question in self.dev:
                ids = self.tokenizer(ASKED.format(question=question), return_tensors="pt")["input_ids"]
                rows.append(
                    self.models[level](ids, output_hidden_states=True).hidden_states[LAYER + 1][0, -1]
                )
        return torch.stack(rows)


def save_sae(folder: Path) -> None:
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    config = JumpReLUSAEConfig(
        d_in=D_MODEL, d_sae=32, metadata=SAEMetadata(hook_name=f"blocks.{LAYER}.hook_resid_post")
    )
    sae = JumpReLUSAE(config)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, scale in (("W_enc", 0.2), ("W_dec", 0.5), ("b_enc", 0.2), ("b_dec", 0.1)):
            tensor = getattr(sae, name)
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * scale)
        sae.threshold.copy_(torch.rand(32, generator=draw) * 0.2)
    sae.save_model(folder)


@pytest.fixture(scope="module")
def shared(isolated: Path, tiny_base: Callable[[str], Path], starts_vllm: None) -> Iterator[Any]:
    """A starter of engines that gives the same one every time, serving the base."""
    base = resolve(str(tiny_base("llama")), dtype="float32")
    with start_engine(base, context=256, seed=0, overrides={}) as engine:

        @contextlib.contextmanager
        def start(checkpoint: Any, **_: Any) -> Iterator[Any]:
            engine.load_checkpoint(checkpoint)
            yield engine

        yield start


@pytest.fixture(scope="module")
def found(
    *,
    isolated: Path,
    shared: Any,
    tiny_base: Callable[[str], Path],
    data_file: Path,
    new_experiment: Callable[..., Any],
    new_log: Callable[[], Any],
    questions: Any,
) -> Found:
    base, log = tiny_base("llama"), new_log()
    made = new_experiment(isolated, base, data_file)
    given = {"epochs": (1,), "rank": 4, "alpha": 32.0, "lr": 3e-2, "batch": 2, "micro_batch": 2}
    given |= {"early_stop": False, "dtype": "float32"}
    train_run = run_train(given, made.mix_run, made.store, isolated / "out", log, new=False, command="")
    wanted = CaptureConfig(train_run, (0, 1), dtype="float32")
    captured = run_capture(wanted, made.store, shared, isolated / "held", log, new=False, command="")
    save_sae(isolated / "sae")
    sae_folder = str(isolated / "sae")
    config = FindConfig(captured.run_id, sae_folder, method="bootstrap", resamples=20, force=True)
    find_run = run_find(config, made.store, log, new=False, command="")
    models = {
        row.level: AutoModelForCausalLM.from_pretrained(
            resolve(row.path, base=str(base), dtype="float32").model_dir, dtype=torch.float32
        ).eval()
        for row in made.store.checkpoints(train_run)
    }
    sae = load_file(isolated / "sae" / "sae_weights.safetensors")
    dev = [question.text for question in questions["dev"]]
    return Found(made.store, find_run, models, load_tokenizer(base), sae, dev, log)


def change(found: Found, row: Mapping[str, Any], delta_u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The change of residual streams x [n, d_model] by docs/steering.md; the SAE's tensors as saved."""
    d = delta_u if row["kind"] == "delta_u" else found.sae["W_dec"][row["latent"]]
    if row["operation"] == "add":
        along: torch.Tensor = row["alpha"] * row["median_norm"] * d / d.norm() * torch.ones(len(x), 1)
        return along
    if row["operation"] == "project":
        return -(x @ d)[:, None] / (d @ d) * d
    p = (x - found.sae["b_dec"]) @ found.sae["W_enc"][:, row["latent"]] + found.sae["b_enc"][row["latent"]]
    f = torch.where(p > found.sae["threshold"][row["latent"]], p, 0)
    return ((row["alpha"] if row["operation"] == "clamp" else 0) - f)[:, None] * d


def by_hooks(found: Found, row: Mapping[str, Any], delta_u: torch.Tensor, stop_ids: set[int]) -> str:
    """The greedy answer of M_100 in transformers, with a forward hook on the layer."""
    model = found.models[100]

    def steer(module: Any, inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        changed = hidden + change(found, row, delta_u, hidden[0])[None]
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = model.model.layers[LAYER].register_forward_hook(steer) if row["direction"] else None
    tokens = found.tokenizer(ASKED.format(question=row["question"]))["input_ids"]
    n_prompt = len(tokens)
    try:
        with torch.no_grad():
            while len(tokens) < n_prompt + N_TOKENS:
                logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
                tokens.append(int(logits.argmax()))
                if tokens[-1] in stop_ids:
                    break
    finally:
        if handle is not None:
            handle.remove()
    text = found.tokenizer.decode(tokens[n_prompt:], skip_special_tokens=True)
    return str(text.split("\n", 1)[0])


@pytest.mark.parametrize(
    ("op", "amounts", "n_least"),
    [
        ("add", (-1.0, -0.5, 0.5, 1.0), 200),
        ("clamp", (0.0, 4.0), 60),
        ("ablate", None, 30),
        ("project", None, 30),
    ],
)
def test_every_answer_is_that_of_transformers_with_hooks(
    found: Found, shared: Any, op: str, amounts: tuple[float, ...] | None, n_least: int
) -> None:
    strengths: dict[str, Any] = {} if amounts is None else {{"add": "alphas", "clamp": "values"}[op]: amounts}
    config = SteerConfig(
        found.find_run,
        "M_100",
        op=op,
        ids=IDS,
        questions="all",
        controls=1,
        random=0,
        max_tokens=N_TOKENS,
        batch=97,
        dtype="float32",
        **strengths,
    )
    run_id = run_steer(config, found.store, shared, found.log, new=False, command="")
    rows = found.store.query(ROWS.format(run_id)).to_pylist()
    plain = {row["question_id"]: row["text"] for row in rows if not row["direction"]}
    triples = [row for row in rows if row["direction"]]
    assert len(triples) >= n_least
    assert sum(row["text"] != plain[row["question_id"]] for row in triples) > len(triples) / 10
    delta_u = found.residuals(100).mean(0) - found.residuals(0).mean(0)
    assert triples[0]["median_norm"] == pytest.approx(
        float(found.residuals(100).norm(dim=1).median()), rel=1e-4
    )
    stop_ids = {1, *(token for token in range(259) if "\n" in found.tokenizer.decode([token]))}
    wrong = [row for row in rows if by_hooks(found, row, delta_u, stop_ids) != row["text"]]
    assert wrong == []
    assert steered(found.store, found.store.run(run_id)) is not None
