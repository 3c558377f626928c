"""Weights after vLLM's loader: a value in each, and an output head shared as in the checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.checkpoints.model_files import open_model
from morfi.checkpoints.weights import is_finite
from morfi.errors import InputError
from morfi.serve.weights.loading import is_tied

if TYPE_CHECKING:
    import torch


def check_what_is_loaded() -> None:
    """Makes vLLM's loader raise InputError where a model that it has loaded is not the checkpoint's.

    vLLM itself does not look for weights that were not loaded in the layers that may be quantised, which are
    almost all; a model would then compute with whatever lay in that memory before.
    """
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    load = DefaultModelLoader.load_weights
    if hasattr(load, "morfi_checks"):
        return

    @functools.wraps(load)
    def load_and_check(self: Any, model: torch.nn.Module, model_config: Any) -> None:
        for _, parameter in _weights(model):
            parameter.data.fill_(float("nan"))
        load(self, model, model_config)
        for name, parameter in _weights(model):
            if not is_finite(parameter.data):
                raise InputError(
                    f"{model_config.model}: vLLM loads nothing, or not all, into {name} of its "
                    f"{type(model).__name__}; it cannot serve this checkpoint"
                )
        _check_head(model, Path(model_config.model))

    load_and_check.morfi_checks = True  # type: ignore[attr-defined]
    DefaultModelLoader.load_weights = load_and_check


def _weights(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The parameters of matrices and embeddings, all of which come from the files."""
    from vllm.model_executor.layers.linear import LinearBase
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for path, module in model.named_modules():
        if isinstance(module, LinearBase | VocabParallelEmbedding):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.is_floating_point() and not parameter.is_meta:
                    yield f"{path}.{name}", parameter


def _check_head(model: torch.nn.Module, directory: Path) -> None:
    from vllm.model_executor.models.utils import PPMissingLayer

    if any(isinstance(module, PPMissingLayer) for module in model.modules()):
        return  # this worker has one end of the model only
    checkpoint = open_model(directory)
    if not checkpoint.tied and checkpoint.layout.head is not None and is_tied(model):
        raise InputError(
            f"{directory} has an output head of its own, and vLLM's {type(model).__name__} uses the input "
            "embedding in its place; it cannot serve this checkpoint"
        )
    if checkpoint.tied and not is_tied(model) and checkpoint.output_head not in checkpoint.weights.tensors:
        raise InputError(
            f"{directory} shares its output head with the input embedding, and vLLM's {type(model).__name__} "
            "keeps one apart; it cannot serve this checkpoint"
        )
