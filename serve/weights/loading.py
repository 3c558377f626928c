"""Tensors of a checkpoint into the model of a running vLLM worker, the packed and fused ones included."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Of these load_weights does nothing but rename and hand each tensor to its module, so that the tensors of one
# module can be given to it alone. Any other model goes through vLLM's own reload.
BY_MODULE = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Gemma2ForCausalLM"})
_LAYER = re.compile(r".*?\.\d+\.")
_EXPERTS = re.compile(r".*\.experts\.")


def loadable_parts(model: torch.nn.Module, names: Collection[str]) -> dict[str, str]:
    """The part of the model that each of a checkpoint's tensors can only be loaded with.

    vLLM fuses tensors (query, key and value; gate and up; experts) and packs what it fused: a tensor needs
    its whole module where that is known, else its whole decoder layer, without the experts, which are a part
    of their own. Other tensors stand alone.
    """
    if _is_plain(model):
        return {name: _target(model, name) for name in names}
    return {
        name: match.group() if (match := _EXPERTS.match(name) or _LAYER.match(name)) else name
        for name in names
    }


def load_tensors(runner: Any, tensors: Iterable[tuple[str, torch.Tensor]], names: Collection[str]) -> None:
    """Loads the tensors called `names`, which make up whole parts, into the model of vLLM's model runner."""
    model = runner.get_model()
    if _is_plain(model):
        _load_by_module(model, tensors, Counter(_target(model, name) for name in names))
    else:
        _load_by_vllm(runner, tensors)


@contextlib.contextmanager
def all_cores(runner: Any) -> Iterator[None]:
    """For a block beside an idle GPU: torch uses the worker's share of the cores, not the one of serving.

    On a CPU, vLLM gives torch its cores for good.
    """
    import torch

    if next(runner.get_model().parameters()).device.type == "cpu":
        yield
        return
    before = torch.get_num_threads()
    n_workers = runner.vllm_config.parallel_config.world_size
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // n_workers))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def pack_output_heads(model: torch.nn.Module) -> None:
    """Packs the output heads again: a tied one is not loaded with its embedding, but packed by itself."""
    for head in output_heads(model):
        head.quant_method.process_weights_after_loading(head)


def output_heads(model: torch.nn.Module) -> list[Any]:
    """The output heads that are modules of their own."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    return [module for module in model.modules() if isinstance(module, ParallelLMHead)]


def has_experts(model: torch.nn.Module) -> bool:
    """Whether vLLM computes a mixture of experts in it, whose weights it packs in its own way."""
    from vllm.model_executor.layers.fused_moe.runner.moe_runner_interface import MoERunnerInterface

    return any(isinstance(module, MoERunnerInterface) for module in model.modules())


def is_tied(model: torch.nn.Module) -> bool:
    """Whether every output head shares its weight with an input embedding, or there is no head at all."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    heads = output_heads(model)
    shared = [
        id(module.weight)
        for module in model.modules()
        if isinstance(module, VocabParallelEmbedding) and module not in heads
    ]
    return all(id(head.weight) in shared for head in heads)


def _is_plain(model: torch.nn.Module) -> bool:
    """Whether modules can be loaded one by one; vLLM's own reload takes any model, at twice the cost."""
    from vllm.model_executor.models.utils import PPMissingLayer

    on_cpu = next(model.parameters()).device.type == "cpu"
    is_whole = not any(isinstance(module, PPMissingLayer) for module in model.modules())
    return on_cpu and is_whole and type(model).__name__ in BY_MODULE


def _target(model: Any, name: str) -> str:
    """The module that the tensor `name` is loaded into."""
    return str(model.hf_to_vllm_mapper.map_name(name)).rpartition(".")[0]


def _load_by_module(model: Any, tensors: Iterable[tuple[str, torch.Tensor]], missing: Counter[str]) -> None:
    """Fills each module as soon as none of its tensors is missing: `missing` counts them by module."""
    waiting: dict[str, list[tuple[str, torch.Tensor]]] = {}
    # The mapper marks each tensor with the part of a fused parameter that it is.
    for name, tensor in model.hf_to_vllm_mapper.apply(tensors):
        path, _, parameter = name.rpartition(".")
        waiting.setdefault(path, []).append((parameter, tensor))
        missing[path] -= 1
        if missing[path] == 0:
            _fill(model.get_submodule(path), waiting.pop(path))
    assert not waiting


def _fill(module: Any, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Gives `module` its tensors and packs them anew."""
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
    from vllm.model_executor.model_loader.reload.meta import materialize_meta_tensor
    from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs
    from vllm.model_executor.model_loader.weight_utils import default_weight_loader

    # Packing leaves an empty parameter behind, which graphs may refer to; vLLM recorded what it was before.
    emptied = {name: old for name, old in module.named_parameters(recurse=False) if old.numel() == 0}
    recorded = get_layerwise_info(module).restore_metadata[0]
    try:
        for name in emptied:
            # A new tensor each time: the record itself must not refer to the module, or it is never freed.
            setattr(module, name, restore_layer_refs(materialize_meta_tensor(recorded[name]), module))
        unwrap_loaders(module)
        if hasattr(module, "load_weights"):
            for _ in module.load_weights(tensors):
                pass
        else:
            for name, tensor in tensors:
                parameter = getattr(module, name)
                getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)
        if hasattr(module, "quant_method"):
            module.quant_method.process_weights_after_loading(module)
    finally:
        for name, old in emptied.items():
            setattr(module, name, old)


def unwrap_loaders(module: torch.nn.Module) -> None:
    """Takes off what vLLM's own reload puts around weight loaders, and which loads nothing outside of it."""
    parameters: Iterable[Any] = module.parameters()
    for parameter in parameters:
        while getattr(getattr(parameter, "weight_loader", None), "__name__", "") == "online_process_loader":
            parameter.weight_loader = parameter.weight_loader.__wrapped__


def _load_by_vllm(runner: Any, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

    for name in ("layerwise", "inplace"):
        # It warns of every layer that is left as it is.
        logging.getLogger(f"vllm.model_executor.model_loader.reload.{name}").setLevel(logging.ERROR)
    try:
        runner.reload_weights(weights_iterator=tensors)
    except BaseException:
        # Half-loaded layers would mix what they were given so far with what the next load gives them.
        finalize_layerwise_reload(runner.get_model(), runner.model_config)
        raise
