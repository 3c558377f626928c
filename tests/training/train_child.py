"""Trains in processes that kill themselves in the middle of things; a test reads what was left.

Arguments: the model's folder, a folder of trainings to make, a seed, and how many times each may be killed.
Prints JSON: for each training the number of kills and the sha256 of its checkpoints. Everything is imported
once, before the processes are forked.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft  # noqa: F401 - imported here, not in every fork
import safetensors.torch
import torch
import transformers  # noqa: F401

import morfi.training.lora
import morfi.training.trainer  # noqa: F401
from morfi.questions.question import Question
from morfi.training import TrainingData, prepare_training, run_training, train_config
from morfi.training.plan import Mixture, TrainingTask

SETTINGS = {"rank": 2, "alpha": 4.0, "lr": 0.01, "batch": 4, "micro_batch": 2, "warmup": 2, "epochs": (1, 3)}


class Silent:
    """A progress that keeps nothing."""

    def phase(self, *_: Any) -> None: ...
    def start(self, *_: Any) -> None: ...
    def advance(self, *_: Any) -> None: ...


def prepared(model: str) -> TrainingTask:
    facts = tuple(Question(f"q{i}", "P0", f"T{i}", f"Where is T{i}?", ("Peru",)) for i in range(6))
    data = TrainingData("facts", "d" * 64, (Mixture(0, facts), Mixture(50, facts[::-1])), facts[:2])
    config = train_config({"model": model, "gradient_checkpointing": False, "max_tokens": 3, **SETTINGS})
    return prepare_training(config, data, Silent())


def die_at(n: int) -> None:
    """Makes this process kill itself at its n-th file operation or optimizer step."""
    left = n

    def counted(call: Callable[..., Any], before_dying: Callable[..., object] | None = None) -> Any:
        def counting(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                if before_dying is not None:
                    before_dying(*args, **options)
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **options)

        return counting

    def half(tensors: Any, path: Path, **options: Any) -> None:
        whole = safetensors.torch.save(tensors)
        Path(path).write_bytes(whole[: len(whole) // 2])

    for name in ("fsync", "rename", "replace", "rmdir", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    safetensors.torch.save_file = counted(safetensors.torch.save_file, half)
    optimizer: Any = torch.optim.AdamW
    optimizer.step = counted(optimizer.step)


def attempt(task: TrainingTask, folder: Path, n: int | None) -> bool:
    """Trains in a fork that dies at its n-th operation; whether it lived to the end."""
    child = os.fork()
    if child == 0:
        if n is not None:
            die_at(n)
        try:
            run_training(task, folder, lambda _: None, Silent(), attempt=1)
        except BaseException as error:  # noqa: BLE001 - a fork must not go on as its parent
            sys.stderr.write(repr(error))
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.waitstatus_to_exitcode(status):
        sys.exit("a training failed")
    return True


def main() -> None:
    model, folder, seed, n_kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
    task = prepared(model)
    gc.collect()
    gc.freeze()  # every training collects, in full
    draw = random.Random(seed)
    found = []
    for number, most in enumerate(n_kills):
        kills = 0
        while not attempt(task, folder / str(number), draw.randint(1, 40) if kills < most else None):
            kills += 1
        manifests = sorted((folder / str(number)).rglob("manifest.json"))
        sha256s = {
            str(path.parent.relative_to(folder / str(number))): json.loads(path.read_text())["adapter_sha256"]
            for path in manifests
        }
        left = [
            path.name
            for path in (folder / str(number)).rglob("*")
            if path.name.startswith((".part", "state"))
        ]
        found.append({"kills": kills, "sha256s": sha256s, "left": left})
    sys.stdout.write(json.dumps(found))


main()
