"""Whether an adapter is whole, as PEFT would want it for its base, and what its tensors are called there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, TypeVar

from morfi.checkpoints.adapters import CONFIG, WEIGHTS, Adapter
from morfi.checkpoints.architecture import listed
from morfi.checkpoints.model_files import ModelFiles
from morfi.errors import InputError, reason_of

_Value = TypeVar("_Value")


def check_whole(adapter: Adapter, base: ModelFiles) -> None:
    """Raises InputError where the adapter lacks tensors that its settings ask for on `base`, or has others.

    PEFT gives what is missing its first values, drops what no setting asks for, and answers all the same.
    """
    layout = base.layout
    targeted = _targets(adapter, base)
    # A fused parameter, such as all experts, was a module for each of them in earlier versions.
    fused = {name.removesuffix(".weight") for name in layout.parts}
    found = {
        module if module in fused else layout.rename(f"{module}.weight").removesuffix(".weight"): module
        for module in adapter.loras
    }
    expected = {module for module in layout.modules if targeted(module)} | {m for m in fused if targeted(m)}
    if lost := expected - set(found):
        raise InputError(_lost(adapter, (f"{module} (LoRA)" for module in lost), "target_modules"))
    leaves = {module.rpartition(".")[2] for module in fused & set(found)}
    if both := sorted(module for module in layout.modules if module.rpartition(".")[2] in leaves):
        raise InputError(
            f"{adapter.path} changes experts of {base.path}, where {both[0]} is called the same, so that "
            "morfi cannot show that it merges as PEFT does; merge the adapter with the transformers that "
            "trained it, and give that model"
        )
    bare = {m for m in set(found) - set(layout.modules) - fused if f"{m}.weight" in layout.shapes}
    if bare:
        _ask_peft(adapter, base, min(bare))
    ends = {_module(layout.embedding), _module(layout.head)} if base.tied else set()
    for module, given in found.items():
        stem = _module(layout.tensor_of(f"{module}.weight")) or given
        if module not in ends and not any(targeted(name) for name in (module, given, stem)):
            raise InputError(
                f"{adapter.path / WEIGHTS} has LoRA tensors of {given}, which target_modules of {CONFIG} "
                "leaves out, so that PEFT would drop them; the two files do not belong together"
            )
    _check_saved(adapter, base, expected)


def _ask_peft(adapter: Adapter, base: ModelFiles, module: str) -> None:
    """Raises InputError unless PEFT puts this adapter on `base`, whose `module` is no linear layer there.

    Routers were linear layers in earlier versions; of some architectures PEFT still takes adapters on them.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig.from_pretrained(adapter.path)
    settings.init_lora_weights = False  # nothing is computed with them
    try:
        with torch.device("meta"):
            get_peft_model(base.empty_model(), settings)
    except ValueError as error:
        raise InputError(
            f"{adapter.path} changes {module}, where PEFT takes no LoRA on this architecture "
            f"({reason_of(error).partition('. ')[0]}); merge the adapter with the transformers that trained "
            "it, and give that model"
        ) from error


def named_as_in_files(adapter: Adapter, base: ModelFiles) -> Adapter:
    """The adapter with its modules and tensors called as in the files of `base`.

    Raises InputError for a parameter that the files hold in another form, and where two tensors of the
    adapter are for one of the base.
    """
    layout = base.layout

    def tensor(name: str) -> str:
        parameter = layout.rename(name)
        if parameter == layout.head:
            return base.output_head
        found = layout.tensor_named(name)
        if found is None and parameter in layout.shapes:
            raise InputError(
                f"{adapter.path} changes {parameter}, which {base.path} does not store as one tensor of "
                "its own; merge the adapter with PEFT's merge_and_unload and give the merged model"
            )
        others = {layout.embedding, layout.head}
        if parameter in {*layout.shared, *layout.shared.values()} - others:
            raise InputError(
                f"{adapter.path} changes {parameter}, which {base.path} uses in several places; merge the "
                "adapter with PEFT's merge_and_unload and give the merged model"
            )
        return name if found is None else found

    def module(name: str) -> str:
        return tensor(f"{name}.weight").removesuffix(".weight")

    return replace(
        adapter,
        loras=_renamed(adapter, adapter.loras, module),
        replacements=_renamed(adapter, adapter.replacements, tensor),
        token_rows=_renamed(adapter, adapter.token_rows, module),
    )


def _renamed(
    adapter: Adapter, named: Mapping[str, _Value], rename: Callable[[str], str]
) -> dict[str, _Value]:
    renamed = {rename(name): value for name, value in named.items()}
    if len(renamed) < len(named):
        raise InputError(
            f"{adapter.path / WEIGHTS} has two tensors for one of the base; save it again with PEFT"
        )
    return renamed


def _targets(adapter: Adapter, base: ModelFiles) -> Callable[[str], bool]:
    """Whether the settings put LoRA on the module of this name, by PEFT's own rule."""
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    config = adapter.config
    targets = config.get("target_modules")
    if targets is None:
        targets = DEFAULTS.get(base.model_type, [])
    settings = SimpleNamespace(
        target_modules=targets if isinstance(targets, str) else set(targets),
        target_parameters=None,
        exclude_modules=config.get("exclude_modules"),
        modules_to_save=config.get("modules_to_save"),
        layers_to_transform=config.get("layers_to_transform"),
        layers_pattern=config.get("layers_pattern"),
    )
    head = _module(base.layout.head)
    if isinstance(targets, str) and targets.lower() == "all-linear":
        kinds = base.layout.modules
        settings.target_modules = {name for name in kinds if kinds[name] != "embedding" and name != head}
    return lambda module: bool(check_target_module_exists(settings, module))


def _check_saved(adapter: Adapter, base: ModelFiles, targeted: Iterable[str]) -> None:
    """Raises InputError where a tensor that is saved whole, a bias or the token rows are missing."""
    layout, config = base.layout, adapter.config
    stored = {layout.rename(name) for name in adapter.replacements}
    ends = {layout.embedding, layout.head}
    if base.tied and stored & ends:
        stored |= {name for name in ends if name is not None}
    for setting, wanted in (
        (
            "modules_to_save",
            [name for name in layout.shapes if _is_within(name, config.get("modules_to_save"))],
        ),
        ("bias", _biases(config.get("bias"), layout.shapes, targeted)),
    ):
        if lost := set(wanted) - stored:
            raise InputError(_lost(adapter, lost, setting))
    if config.get("trainable_token_indices") and not adapter.token_rows:
        raise InputError(_lost(adapter, ["the trained token rows"], "trainable_token_indices"))


def _is_within(parameter: str, saved: Any) -> bool:
    """Whether the parameter is of one of the modules `saved`, which PEFT finds by how their paths end."""
    steps = parameter.split(".")
    paths = [".".join(steps[:end]) for end in range(1, len(steps))]
    return any(path.endswith(name) for name in saved or () for path in paths)


def _biases(setting: Any, shapes: Mapping[str, Any], targeted: Iterable[str]) -> list[str]:
    if setting == "all":
        return [name for name in shapes if name.endswith(".bias")]
    if setting == "lora_only":
        return [f"{module}.bias" for module in targeted if f"{module}.bias" in shapes]
    return []


def _module(tensor: str | None) -> str | None:
    return None if tensor is None else tensor.removesuffix(".weight")


def _lost(adapter: Adapter, names: Iterable[str], setting: str) -> str:
    return (
        f"{adapter.path / WEIGHTS} lacks tensors that {setting} of {CONFIG} asks for on this base: "
        f"{listed(sorted(names))}; copy or save the adapter again, or give its own base as --base"
    )
