"""The real thing as a user runs it: `morfi eval` on a LoRA adapter of SmolLM2, killed once and resumed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from morfi.cache import Cache
from morfi.checkpoints import resolve
from morfi.store import Store

N_QUESTIONS = 96
DECIDED = [
    "question_id",
    "prompt",
    "text",
    "answer",
    "finish_reason",
    "correct",
    "cached_tokens",
    "output_tokens",
]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of SmolLM2 with random weights, small enough that answers stay words."""
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(
        resolve("smollm2", cache=Cache()).model_dir, dtype=torch.float32
    )
    torch.manual_seed(0)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    peft_model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.002)
    path = tmp_path_factory.mktemp("adapter")
    peft_model.save_pretrained(path)
    return path


def command(adapter: Path, db: Path, *more: str) -> list[str]:
    asked = ["--relations", "P17,P36", "--limit", str(N_QUESTIONS), "--batch", "8", "--dtype", "float32"]
    given = ["--ckpt", str(adapter), "--base", "smollm2", "--db", str(db), "--json", *asked, *more]
    return [sys.executable, "-m", "morfi", "eval", *given]


def finish(arguments: list[str]) -> dict[str, Any]:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))  # one object and nothing else


def kill_after_first_rows(arguments: list[str], db: Path) -> int:
    """Runs the command until some of its rows are stored, kills it, and returns how many there are."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if db.exists() and Store(db).runs(1) and Store(db).runs(1)[0].n_done >= 8:
            break
        time.sleep(0.3)  # reading shuts out the writer
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return Store(db).runs(1)[0].n_done


@pytest.mark.usefixtures("starts_vllm")
def test_a_killed_and_resumed_run_has_the_rows_of_an_uninterrupted_one(adapter: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole.duckdb", tmp_path / "killed.duckdb"
    with ThreadPoolExecutor() as pool:  # most of either is starting
        uninterrupted = pool.submit(finish, command(adapter, whole))
        n_before = kill_after_first_rows(command(adapter, killed), killed)
        report = uninterrupted.result()
    assert 0 < n_before < N_QUESTIONS
    assert n_before % 8 == 0
    resumed = finish(command(adapter, killed, "--resume", "auto"))
    assert (resumed["n"], resumed["accuracy"]) == (N_QUESTIONS, report["accuracy"])
    rows = [
        Store(db).samples(run["run_id"]).select(DECIDED).to_pylist()
        for db, run in ((whole, report), (killed, resumed))
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == N_QUESTIONS
    assert_answers_equal_peft(adapter, rows[0][::8])


def assert_answers_equal_peft(adapter: Path, rows: list[dict[str, Any]]) -> None:
    """The merged checkpoint served by vLLM answers as transformers with the unmerged adapter."""
    from peft import PeftModel

    directory = resolve("smollm2", cache=Cache()).model_dir
    tokenizer = AutoTokenizer.from_pretrained(directory)
    base = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, adapter).eval()
    texts = []
    for row in rows:
        prompt = tokenizer(row["prompt"], return_tensors="pt")
        with torch.inference_mode():
            out = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt.input_ids.shape[1] :]
        texts.append(tokenizer.decode(out, skip_special_tokens=True).split("\n", 1)[0])
    assert texts == [row["text"] for row in rows]
