"""A checkpoint on disk: the adapter in PEFT's format and a manifest that says what made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.checkpoints.adapters import CONFIG, WEIGHTS, load_adapter
from morfi.checkpoints.weights import read_json, write_tensors
from morfi.errors import InputError
from morfi.files import whole_folder, write_json

if TYPE_CHECKING:
    import torch

MANIFEST = "manifest.json"
FORMAT = 1
_KEYS = frozenset(
    ("level", "epoch", "seed", "settings", "base", "base_sha256", "data", "mixture_sha256", "adapter_sha256")
)


def write_checkpoint(
    path: Path, tensors: Mapping[str, torch.Tensor], lora: Any, base: str, made_by: Mapping[str, Any]
) -> None:
    """Writes adapter_model.safetensors, adapter_config.json and manifest.json to the folder `path`.

    `lora` is the PEFT configuration, `base` what the adapter will name as its base model, `made_by` the
    manifest without format and adapter sha256. A folder that was there is replaced in one step; equal
    arguments give equal bytes.
    """
    with whole_folder(path) as part:
        write_tensors(part / WEIGHTS, tensors)
        lora.save_pretrained(part)
        config = read_json(part / CONFIG)
        # PEFT keeps names in a set, whose order differs from one process to the next.
        config["target_modules"] = sorted(config["target_modules"])
        write_json(part / CONFIG, config | {"base_model_name_or_path": base, "inference_mode": True})
        sha256 = load_adapter(part).sha256()
        write_json(part / MANIFEST, {"format": FORMAT, **made_by, "adapter_sha256": sha256})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the checkpoint in `folder`, whose adapter was checked to be the one it was written for.

    Raises InputError as `load_manifest`, and where the adapter's sha256 is another.
    """
    manifest = load_manifest(folder)
    sha256 = load_adapter(folder).sha256()
    if sha256 != manifest["adapter_sha256"]:
        raise InputError(
            f"{folder}: the adapter's sha256 is {sha256[:12]}, {MANIFEST} says "
            f"{str(manifest['adapter_sha256'])[:12]}: it was changed since its training; copy it again"
        )
    return manifest


def load_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the checkpoint in `folder`; its adapter is there, but was not read.

    Raises InputError where folder, manifest or adapter are gone, or the manifest is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"the checkpoint {folder} is gone; copy it back or train again")
    path = folder / MANIFEST
    if not path.is_file():
        raise InputError(f"{path} is gone, so that nothing says what made the adapter; copy it back")
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise InputError(
            f"{path} has the format {json.dumps(manifest.get('format'))}, this morfi reads {FORMAT}; "
            "train again, or use the morfi that wrote it"
        )
    if missing := sorted(_KEYS - set(manifest)):
        raise InputError(f"{path} lacks {missing[0]}; copy it again")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is gone; copy it back or train again")
    return manifest
