"""Fine-tuning with LoRA: one training for each mixture and seed, its checkpoints and their manifests."""

from morfi.training.config import TrainConfig, train_config
from morfi.training.manifest import load_manifest, read_manifest
from morfi.training.plan import TrainingData, TrainingTask, prepare_training
from morfi.training.run import run_training

__all__ = [
    "TrainConfig",
    "TrainingData",
    "TrainingTask",
    "load_manifest",
    "prepare_training",
    "read_manifest",
    "run_training",
    "train_config",
]
