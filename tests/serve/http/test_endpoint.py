"""What `--endpoint` asks of morfi's own server is answered as by an engine of its own, in float32."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated import facts, run
from progress_log import Log

from morfi.checkpoints import Checkpoint, resolve
from morfi.evaluation.config import EvalConfig
from morfi.evaluation.split import SplitConfig, run_split
from morfi.interventions import SteerConfig, run_steer
from morfi.serve.engine import start_engine
from morfi.store import Store
from morfi.terminal import TerminalProgress

ENGINE = {"kv_cache_memory_bytes": 1 << 24}
BY_NAME = {"ckpt", "ckpt_sha256", "cached_tokens"}  # what the server and the engine may differ in
UNSTEERED = """
SELECT s.question_id, s.text, s.output_tokens FROM steered_answer s JOIN asked a USING (run_id, question_id)
WHERE s.run_id = '{}' AND direction = '' AND served = 'base' AND split = 'test' ORDER BY question_id
"""


@dataclass(frozen=True)
class Both:
    """A store of its own, the checkpoint that the server serves, and the settings that ask either."""

    store: Store
    checkpoint: Checkpoint
    here: EvalConfig
    there: EvalConfig


@pytest.fixture(scope="module")
def server(serve_made: Any) -> Iterator[Any]:
    """Serves the base model, whose answers differ from question to question."""
    with serve_made(ckpt="base") as server:
        yield server


@pytest.fixture(scope="module")
def both(
    *,
    made: Any,
    served_model: Path,
    server: Any,
    data_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("both")
    shutil.copyfile(made.db, folder / "own.duckdb")
    store = Store(folder / "own.duckdb")
    model = str(served_model)
    common: dict[str, Any] = {"data": str(data_file), "shots": 2, "max_tokens": 12}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MORFI_CACHE", str(made.cache))
        patched.delenv("MORFI_API_KEY", raising=False)
        patched.delenv("OPENAI_API_KEY", raising=False)
        yield Both(
            store,
            resolve(model),
            EvalConfig(model, engine=ENGINE, batch=64, **common),
            EvalConfig(endpoint=f"{server.url}/v1", served="tiny", batch=64, **common),
        )


@pytest.fixture(scope="module")
def engine(both: Both) -> Iterator[Any]:
    """Starts the one engine on the checkpoint, for whoever asks for one."""
    assert both.checkpoint.dtype == "float32"
    with start_engine(both.checkpoint, context=256, overrides=ENGINE) as engine:
        yield lambda *_, **__: contextlib.nullcontext(engine)


def rows_of(store: Store, run_id: str) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in BY_NAME} for row in facts(store, run_id)]


def test_an_evaluation_is_that_of_the_checkpoint(both: Both, engine: Any) -> None:
    local = rows_of(both.store, run(both.here, both.store, engine))
    remote = rows_of(both.store, run(both.there, both.store, start_engine))
    assert len({row["text"] for row in local}) > 4
    assert remote == local


def test_a_split_is_that_of_the_checkpoint(both: Both, engine: Any, data_file: Path) -> None:
    sizes: dict[str, Any] = {"n_ex": 2, "shots": 1, "samples": 3, "max_tokens": 6}
    # The highest logits are of printable bytes; what is no UTF-8 is not decoded alike piece by piece.
    config = SplitConfig(str(both.here.ckpt), data=str(data_file), top_k=5, engine=ENGINE, **sizes)
    server = replace(config, ckpt=None, served="tiny", endpoint=both.there.endpoint, engine={})
    local, remote = (
        run_split(one, both.store, start, Log(), new=False, command="")
        for one, start in ((config, engine), (server, start_engine))
    )
    rows = rows_of(both.store, local)
    assert len({row["text"] for row in rows if row["question_id"] == rows[0]["question_id"]}) > 3
    assert rows_of(both.store, remote) == rows


def test_tokens_and_their_probabilities_are_those_of_transformers(both: Both, server: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(both.checkpoint.model_dir, dtype=torch.float32)
    for row in facts(both.store, run(both.there, both.store, start_engine, "auto"))[:6]:
        body = {"prompt": row["prompt"], "max_tokens": 6, "temperature": 0, "logprobs": 1}
        choice = server.post("/v1/completions", {**body, "return_token_ids": True}).json()["choices"][0]
        prompt, given = choice["prompt_token_ids"], choice["token_ids"]
        assert len(prompt) == row["prompt_tokens"]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + given])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(given)[:, None])[:, 0]
        assert logits.argmax(-1).tolist() == given
        found = torch.tensor(choice["logprobs"]["token_logprobs"])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_unsteered_answers_of_a_steer_run_are_those_of_the_server(made: Any, both: Both) -> None:
    config = SteerConfig(
        made.find_run,
        "M_100",
        alphas=(1.0,),
        ids=(0,),
        controls=0,
        random=0,
        questions="all",
        max_tokens=12,
        engine=ENGINE,
    )
    with TerminalProgress() as progress:
        run_id = run_steer(config, both.store, start_engine, progress, new=False, command="")
    remote = facts(both.store, run(replace(both.there, shots=0), both.store, start_engine))
    steered = both.store.query(UNSTEERED.format(run_id)).to_pylist()
    assert len(steered) == len(remote) > 0
    for ours, theirs in zip(steered, remote, strict=True):
        assert ours == {name: theirs[name] for name in ours}
