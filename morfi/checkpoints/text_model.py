"""The text model inside a checkpoint that reads images too, as a folder of its own in the cache.

vLLM serves the whole only with packages for images, which morfi does without: its prompts are text.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.cache import Cache, Manifest
from morfi.checkpoints.model_files import SIDE_FILES, ModelFiles, open_model, transformers_config
from morfi.checkpoints.weights import read_json, write_weights
from morfi.files import canonical_sha256, note_source
from morfi.terminal import Say

if TYPE_CHECKING:
    import torch

# The architecture of a checkpoint, and of the text model in it.
TEXT_MODELS: Mapping[str, str] = {"Gemma3ForConditionalGeneration": "Gemma3ForCausalLM"}
_FORMAT = 1  # of entries; a new number writes them again
# Names as on the hub, and as newer versions of transformers wrote them.
_LANGUAGE = re.compile(r"(?:model\.)?language_model\.(?:model\.)?(?!lm_head)(.+)")
_WHOLE = re.compile(r"(?:^|\.)(?:language_model|vision_tower|multi_modal_projector)\.")
_HEAD = re.compile(r"(?:language_model\.)?(lm_head\..+)")


def text_folder(directory: Path, cache: Cache, say: Say | None = None) -> Path:
    """The folder of the text model in `directory`, written once into `cache`; itself where it is one.

    Raises InputError where the model is not whole.
    """
    note_source(directory)
    path = directory / "config.json"
    if not path.is_file() or _text_model(path) is None:
        return directory
    model = open_model(directory)
    sha256 = model.sha256(cache, say)

    def build(folder: Path) -> None:
        if say is not None:
            say(f"taking the text model out of {directory.name}")
        (folder / "config.json").write_text(json.dumps(_config(path), indent=2, sort_keys=True))
        write_weights(folder, _text_weights(model))
        for name in SIDE_FILES:
            if (directory / name).is_file():
                shutil.copyfile(directory / name, folder / name)

    key = canonical_sha256({"kind": "text", "format": _FORMAT, "sha256": sha256})
    sources = {"path": str(directory), "sha256": sha256}
    return cache.get_or_create(key, build, Manifest("text", directory.name, sources), say)


def is_of_whole(tensor: str) -> bool:
    """Whether a tensor has the name of one of a model that reads images too, which its text model lacks."""
    return _WHOLE.search(tensor) is not None


def _text_model(config: Path) -> str | None:
    """The architecture of the text model in a checkpoint with this `config`; None where there is no other."""
    named = read_json(config).get("architectures")
    return TEXT_MODELS.get(str(named[0])) if isinstance(named, list) and named else None


def _config(path: Path) -> dict[str, object]:
    """The configuration of the text model, every setting of it spelt out."""
    whole = transformers_config(path)
    text = json.loads(whole.get_text_config().to_json_string(use_diff=False))
    dtype = read_json(path).get("dtype") or read_json(path).get("torch_dtype")
    return {
        **text,
        "architectures": [_text_model(path)],
        "tie_word_embeddings": whole.tie_word_embeddings,
        **({"dtype": dtype} if dtype else {}),
    }


def _text_weights(model: ModelFiles) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in model.weights:
        if found := _HEAD.fullmatch(name):
            yield found[1], tensor
        elif found := _LANGUAGE.fullmatch(name):
            yield f"model.{found[1]}", tensor
