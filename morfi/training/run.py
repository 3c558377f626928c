"""The run: one training after another on a base that is loaded once, each resumed from where it was left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.errors import MorfiError
from morfi.files import whole_folder, write_json
from morfi.runs.provenance import versions
from morfi.store.records import EARLY_STOP, CheckpointRow, EpochRow
from morfi.terminal import Progress
from morfi.training.folder import locked, saving
from morfi.training.generation import DevAccuracy, LiveGenerator, dev_accuracy
from morfi.training.history import HISTORY, EpochResult, TrainingFolder, best_epoch
from morfi.training.manifest import read_manifest, write_checkpoint
from morfi.training.plan import TrainingJob, TrainingTask

if TYPE_CHECKING:
    import torch

    from morfi.training.trainer import LoraTrainer

# Keeps a row of a run; the same row may come again when a run is resumed.
Record = Callable[[EpochRow | CheckpointRow], None]


def run_training(
    task: TrainingTask, folder: Path, record: Record, progress: Progress, *, attempt: int
) -> list[CheckpointRow]:
    """Trains what `folder` lacks of `task`; returns all its checkpoints, each recorded when it was written.

    A training that was killed goes on after its last finished epoch, to the same checkpoints; rows of what
    was done before are recorded again. Raises InputError where `folder` holds trainings with other settings
    or a checkpoint in it was changed, MorfiError where a loss is no longer finite or the disk is full.
    """
    with saving(folder, 0):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        trainings = [_Training(task, job, TrainingFolder(folder / job.name), attempt) for job in task.jobs]
        for training in trainings:
            with saving(training.folder.path, 0):
                training.folder.open(training.job.settings)
        n_done = sum(training.folder.n_epochs * len(training.job.examples) for training in trainings)
        progress.start(task.n_planned, n_done, "examples")
        base = None
        rows: list[CheckpointRow] = []
        for number, training in enumerate(trainings, 1):
            training.replay(record)
            if not training.folder.finished:
                if base is None:
                    progress.phase(f"loading {task.base.name}")
                    base = load_base(task)
                job = training.job
                progress.phase(f"level {job.level}, seed {job.seed} ({number} of {len(trainings)})")
                base = training.train(base, record, progress)
            rows += training.finished_rows(record)
    return rows


def load_base(task: TrainingTask) -> Any:
    """The base model of `task` on the machine's device, its weights frozen by whoever adds LoRA."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    from morfi.device import is_gpu

    logging.disable_progress_bar()
    path = task.base.model_dir
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    # Fused attention leaves out the soft-capping of attention scores, which vLLM applies.
    attention = "eager" if getattr(config, "attn_logit_softcapping", None) else None
    model = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=getattr(torch, task.dtype),
        attn_implementation=attention,
        local_files_only=True,
        trust_remote_code=False,
    )
    return model.to("cuda" if is_gpu() else "cpu")


@dataclass
class _Training:
    """One training in its folder: its finished epochs and the tensors of the best one so far."""

    task: TrainingTask
    job: TrainingJob
    folder: TrainingFolder
    attempt: int
    history: list[EpochResult] = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: dict[int, CheckpointRow] = field(default_factory=dict)  # by epoch, of those asked for
    lora: Any = None
    generator: LiveGenerator | None = None
    epoch_began: float = 0.0

    def replay(self, record: Record) -> None:
        """Records what was done before, after checking that its checkpoints are still what they were."""
        self.history = self.folder.history()
        for result in self.history:
            self._record(result, record)

    def train(self, base: Any, record: Record, progress: Progress) -> Any:
        """Trains the epochs that lack, writes their checkpoints, and gives `base` back as it was."""
        from morfi.training.lora import attach_lora, detach_lora
        from morfi.training.trainer import LoraTrainer, best_tensors

        config, state = self.task.config, self.folder.state
        model = attach_lora(base, config, self.job.seed)
        self.lora = model.peft_config["default"]
        self.generator = LiveGenerator(model, self.task.tokenizer)
        if state is not None:
            self.best = best_tensors(state)
        trainer = LoraTrainer(
            model,
            self.job,
            config,
            self.folder.path,
            end_epoch=lambda trainer: self._end_epoch(trainer, record, progress),
            end_step=progress.advance,
        )
        self.epoch_began = time.monotonic()
        trainer.train(resume_from_checkpoint=None if state is None else str(state))
        self._finish()
        return detach_lora(model)

    def finished_rows(self, record: Record) -> list[CheckpointRow]:
        """The rows of all checkpoints of the finished training, the early-stop one recorded only now."""
        if not self.task.config.early_stop:
            return list(self.rows.values())
        best = best_epoch(self.history)
        asked = self.rows.get(best)
        stopped = self._row(EARLY_STOP, best) if asked is None else replace(asked, epoch_setting=EARLY_STOP)
        record(stopped)
        return [*self.rows.values(), stopped]

    def _end_epoch(self, trainer: LoraTrainer, record: Record, progress: Progress) -> None:
        """Measures, saves and records the epoch; only the new state's own folder makes it count as done."""
        from morfi.training.lora import adapter_tensors

        task, epoch = self.task, len(self.history) + 1
        train_s = time.monotonic() - self.epoch_began
        tensors = adapter_tensors(trainer.model)
        trainer.check_finite(tensors)
        dev, begun = DevAccuracy(0, 0), time.monotonic()
        if task.dev and self.generator is not None:
            dev = dev_accuracy(self.generator, task.dev, task.config.max_tokens, task.config.match)
        dev_s = time.monotonic() - begun
        loss, n_steps = trainer.epoch_loss, trainer.n_steps
        result = EpochResult(epoch, loss, n_steps, dev.n, dev.n_correct, train_s, dev_s)
        self.history.append(result)
        if task.config.early_stop and best_epoch(self.history) == epoch:
            self.best = tensors
        if epoch in task.config.epochs:
            self._write(epoch, tensors)
        self._save_state(trainer, epoch, tensors)
        progress.phase(_summary(self.job, result))
        self._record(result, record)
        trainer.clear_epoch()
        self.epoch_began = time.monotonic()

    def _save_state(self, trainer: LoraTrainer, epoch: int, tensors: Mapping[str, torch.Tensor]) -> None:
        # The weights with both their moments, and the best epoch's.
        with saving(self.folder.path, 3 * _n_bytes(tensors) + _n_bytes(self.best)):
            with whole_folder(self.folder.state_of(epoch)) as part:
                trainer.save_state(part, self.best)
                write_json(part / HISTORY, {"epochs": [asdict(result) for result in self.history]})
            self.folder.drop_states(keep=epoch)

    def _finish(self) -> None:
        config = self.task.config
        if len(self.history) != config.last_epoch:
            raise MorfiError(
                f"{self.folder.path}: {len(self.history)} epochs of {config.last_epoch} were trained"
            )
        if config.early_stop and (best := best_epoch(self.history)) not in config.epochs:
            self._write(best, self.best)
        with saving(self.folder.path, 0):
            self.folder.finish(self.history)

    def _write(self, epoch: int, tensors: Mapping[str, torch.Tensor]) -> None:
        path = self.folder.checkpoint(epoch)
        with saving(path, _n_bytes(tensors)):
            write_checkpoint(path, tensors, self.lora, self.task.base_name, self._made_by(epoch))

    def _made_by(self, epoch: int) -> dict[str, Any]:
        """The manifest of the checkpoint of `epoch`, without times: equal trainings give equal bytes."""
        task, job = self.task, self.job
        history = self.history[:epoch]
        return {
            "level": job.level,
            "epoch": epoch,
            "seed": job.seed,
            "settings": task.config.decisive | {"dtype": task.dtype},
            "base": task.base_name,
            "base_sha256": task.base.base_sha256,
            "data": {"name": task.data.name, "sha256": task.data.sha256},
            "mixture_sha256": job.settings["mixture_sha256"],
            "n_examples": len(job.examples),
            "loss": [result.loss for result in history],
            "dev": [{"n": result.n_dev, "n_correct": result.n_dev_correct} for result in history],
            "versions": versions(),
        }

    def _record(self, result: EpochResult, record: Record) -> None:
        job = self.job
        row = asdict(result) | {"level": job.level, "seed": job.seed, "attempt": self.attempt}
        record(EpochRow(**row))
        if result.epoch in self.task.config.epochs:
            self.rows[result.epoch] = self._row(str(result.epoch), result.epoch)
            record(self.rows[result.epoch])

    def _row(self, setting: str, epoch: int) -> CheckpointRow:
        path = self.folder.checkpoint(epoch)
        manifest = read_manifest(path)
        return CheckpointRow(
            level=self.job.level,
            seed=self.job.seed,
            epoch_setting=setting,
            epoch=epoch,
            path=str(path.absolute()),
            adapter_sha256=manifest["adapter_sha256"],
            manifest=manifest,
            attempt=self.attempt,
        )


def _summary(job: TrainingJob, result: EpochResult) -> str:
    dev = f", dev {result.n_dev_correct} of {result.n_dev} right" if result.n_dev else ""
    return f"level {job.level}, seed {job.seed}, epoch {result.epoch}: loss {result.loss:.3f}{dev}"


def _n_bytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
