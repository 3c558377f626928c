"""One side of train_throughput.py: TRL's SFTTrainer, with its defaults or close to ours."""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

# As morfi trains on a CPU without bfloat16: in float32, no activation computed twice.
CLOSE = {"bf16": False, "gradient_checkpointing": False, "optim": "adamw_torch_fused", "max_grad_norm": 1.0}


class Clock(TrainerCallback):  # type: ignore[misc]
    """The time at the end of every optimizer step, and when the first began."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Starts the clock."""
        self.times.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Notes the time."""
        self.times.append(time.perf_counter())


def main() -> None:
    """Reads model, examples, epochs, rank, alpha, lr, batch and close; writes the seconds of each step."""
    job = json.load(sys.stdin)
    answer, sys.stdout = sys.stdout, sys.stderr  # the trainer prints what it logs
    disable_progress_bars()
    dtype = torch.float32 if job["close"] else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
    lora = LoraConfig(
        r=job["rank"], lora_alpha=job["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            num_train_epochs=job["epochs"],
            per_device_train_batch_size=job["batch"],
            learning_rate=job["lr"],
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            **(CLOSE if job["close"] else {}),
        )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(job["examples"]),
            processing_class=AutoTokenizer.from_pretrained(job["model"]),
            peft_config=lora,
            callbacks=[clock],
        )
        result = trainer.train()
    steps = [end - start for start, end in itertools.pairwise(clock.times)]
    used = {key: getattr(config, key) for key in ("bf16", "gradient_checkpointing", "max_length", "packing")}
    json.dump({"steps_s": steps, "loss": result.training_loss, "settings": used}, answer)
    answer.flush()
    os._exit(0)


main()
