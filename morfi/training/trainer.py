"""The training loop: transformers' Trainer with a loss on answer tokens and a state of its own.

Imports torch and transformers, so only what trains imports this module.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from morfi.checkpoints.tensors import read_tensors
from morfi.checkpoints.weights import read_json, write_tensors
from morfi.device import is_gpu
from morfi.errors import MorfiError
from morfi.training.config import TrainConfig
from morfi.training.examples import MicroBatches
from morfi.training.lora import adapter_tensors, load_adapter_tensors
from morfi.training.output_head import head_reads
from morfi.training.plan import TrainingJob

_SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
_MAX_GRAD_NORM = 1.0
_TENSORS = "state.safetensors"
_PLAIN = "optimizer.json"
_LOOP = "trainer_state.json"  # the name under which Trainer looks for it


def answer_loss(model: Any, micro_batch: Mapping[str, Tensor]) -> Tensor:
    """The summed cross-entropy, in float32, of the targets of a micro-batch (see `examples.collate`).

    Hidden states of other places are dropped before the output head.
    """
    rows, columns, targets = (micro_batch[key] for key in ("rows", "columns", "targets"))
    with head_reads(model, lambda hidden: hidden[rows, columns][None]):  # [1, n_targets, d_model]
        logits = model(input_ids=micro_batch["input_ids"], use_cache=False).logits[0]
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


class LoraTrainer(Trainer):  # type: ignore[misc]
    """Trains the LoRA weights of `model` on one mixture; `end_epoch` is called after every epoch.

    `end_epoch` gets this trainer, `end_step` the number of examples of each optimizer step. A step's gradient
    is that of the mean over all its answer tokens, however they fall into micro-batches.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: Any,
        job: TrainingJob,
        config: TrainConfig,
        folder: Path,
        *,
        end_epoch: Callable[[LoraTrainer], None],
        end_step: Callable[[int], None],
    ) -> None:
        """Makes ready to train; `folder` is where the Trainer may write, which it does not."""
        self._job, self._config = job, config
        self._batches = MicroBatches(job.examples, config.batch, config.micro_batch, job.seed)
        self._loss_sum, self._n_tokens, self.n_examples = 0.0, 0, 0
        super().__init__(model=model, args=_arguments(config, job.seed, folder))
        self.model_accepts_loss_kwargs = True
        self.remove_callback(PrinterCallback)
        self.add_callback(_Ends(self, end_epoch, end_step))

    @property
    def epoch(self) -> int:
        """The number of the epoch that is trained or has just ended, from 1."""
        return math.ceil(round(self.state.epoch or 0.0, 6))

    @property
    def n_steps(self) -> int:
        """Optimizer steps in an epoch."""
        return math.ceil(len(self._job.examples) / self._config.batch)

    @property
    def epoch_loss(self) -> float:
        """The mean loss over the answer tokens of the epoch, each taken before its own step."""
        return self._loss_sum / self._n_tokens

    def clear_epoch(self) -> None:
        """Begins the sums of the next epoch."""
        self._loss_sum, self._n_tokens = 0.0, 0

    def get_train_dataloader(self) -> Any:
        """The micro-batches; a data loader with workers would cost more than it saves."""
        return self._batches

    def get_batch_samples(
        self,
        epoch_iterator: Iterator[dict[str, Tensor]],
        num_batches: int,
        device: Any,  # noqa: ARG002
    ) -> tuple[list[dict[str, Tensor]], int]:
        """The micro-batches of one optimizer step, and how many answer tokens they hold together."""
        micro_batches = list(itertools.islice(epoch_iterator, num_batches))
        self.n_examples = sum(len(each["input_ids"]) for each in micro_batches)
        return micro_batches, sum(len(each["targets"]) for each in micro_batches)

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,  # noqa: ARG002
        num_items_in_batch: Any = None,
    ) -> Any:
        """The share of a micro-batch in the mean loss of its step; MorfiError where it is not finite."""
        loss = answer_loss(model, inputs)
        value = loss.item()
        if not math.isfinite(value):
            raise self._diverged(f"the loss became {value}")
        self._loss_sum += value
        self._n_tokens += len(inputs["targets"])
        return loss / num_items_in_batch

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        if not math.isfinite(norm):
            # Before the step, which would spoil every weight.
            raise self._diverged("the gradient is no longer finite")
        return norm

    def check_finite(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises MorfiError where a weight is NaN or infinite."""
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            raise self._diverged("the weights are no longer finite")

    def _diverged(self, what: str) -> MorfiError:
        done, step = divmod(self.state.global_step, self.n_steps)
        return MorfiError(
            f"level {self._job.level}, seed {self._job.seed}: {what} in epoch {done + 1}, step {step + 1} of "
            f"{self.n_steps}, so this training stopped; checkpoints of earlier epochs and the state after "
            f"epoch {done} are kept; train again with a lower --lr than {self._config.lr:g}"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Prints nothing: the caller has a progress of its own."""

    def floating_point_ops(self, inputs: Any) -> int:  # noqa: ARG002
        """0: the count takes time at every step, and is not used."""
        return 0

    def save_state(self, folder: Path, best: Mapping[str, Tensor]) -> None:
        """Writes to `folder` all that the training goes on from.

        `best` are the tensors of the epoch that would be the early-stop checkpoint.
        """
        optimizer = self.optimizer.state_dict()
        tensors = {f"adapter/{name}": tensor for name, tensor in adapter_tensors(self.model).items()}
        tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
        for index, moments in optimizer["state"].items():
            tensors |= {f"optimizer/{index}/{key}": value.cpu() for key, value in moments.items()}
        tensors["random/cpu"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["random/cuda"] = torch.cuda.get_rng_state()
        write_tensors(folder / _TENSORS, tensors)
        plain = {"groups": optimizer["param_groups"], "schedule": self.lr_scheduler.state_dict()}
        (folder / _PLAIN).write_text(json.dumps(plain), encoding="utf-8")
        self.state.save_to_json(str(folder / _LOOP))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:  # noqa: ARG002
        load_adapter_tensors(self.model, _part(resume_from_checkpoint, "adapter"))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        plain = read_json(Path(checkpoint) / _PLAIN)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(checkpoint, "optimizer").items():
            index, _, key = name.partition("/")
            moments.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({"state": moments, "param_groups": plain["groups"]})
        self.lr_scheduler.load_state_dict(plain["schedule"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        states = _part(checkpoint, "random")
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])


def best_tensors(state: Path) -> dict[str, Tensor]:
    """The tensors of the early-stop checkpoint that a state carries along."""
    return _part(state, "best")


class _Ends(TrainerCallback):  # type: ignore[misc]
    """Passes the ends of steps and epochs on."""

    def __init__(
        self, trainer: LoraTrainer, end_epoch: Callable[[LoraTrainer], None], end_step: Callable[[int], None]
    ) -> None:
        self._trainer, self._end_epoch, self._end_step = trainer, end_epoch, end_step

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._end_step(self._trainer.n_examples)

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self._end_epoch(self._trainer)


def _part(state: str | Path, prefix: str) -> dict[str, Tensor]:
    """The tensors of the state whose names begin with `prefix`/, without it."""
    return read_tensors(Path(state) / _TENSORS, f"{prefix}/")


def _arguments(config: TrainConfig, seed: int, folder: Path) -> Any:
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=not is_gpu(),
        seed=seed,
        num_train_epochs=config.last_epoch,
        per_device_train_batch_size=config.micro_batch,
        gradient_accumulation_steps=config.batch // config.micro_batch,
        learning_rate=config.lr,
        lr_scheduler_type=_SCHEDULES[config.schedule],
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        max_grad_norm=_MAX_GRAD_NORM,
        optim="adamw_torch_fused",
        gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        # The base is loaded in the dtype it computes in and LoRA follows it, so nothing is cast on the way.
        bf16=False,
        fp16=False,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    # Several GPUs would make it wrap the model in DataParallel.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments
