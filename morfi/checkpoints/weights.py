"""Safetensors files: opened and checked, hashed by content, read tensor by tensor, written in shards."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.errors import InputError
from morfi.terminal import Say

if TYPE_CHECKING:
    import torch

    from morfi.cache import Cache

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MISTRALS_OWN = "consolidated"  # the same weights under Mistral's own names, beside Hugging Face's
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SCAN_ELEMENTS = 1 << 23
_SHARD_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies; `dtype` is the file format's name, such as "BF16"."""

    shard: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def item_bytes(self) -> int:
        """The bytes of a number: those that its dtype names, such as 16 bits of "BF16", 8 of "F8_E4M3"."""
        bits = re.search(r"\d+", self.dtype)
        return int(bits[0]) // 8 if bits else 1


@dataclass(frozen=True, slots=True)
class Weights:
    """The tensors of one or several safetensors files, by name, in the order of the files.

    `held` has those that were read into memory (`in_memory`); the others are read when asked for.
    """

    tensors: Mapping[str, TensorEntry]
    held: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each name with its tensor, one shard open at a time, one tensor in memory at a time."""
        for shard, names in self.shards().items():
            with _opened(shard) as file:
                for name in names:
                    yield name, file.get_tensor(name)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor called `name`, read from its file."""
        if name in self.held:
            return self.held[name]
        with _opened(self.tensors[name].shard) as file:
            loaded: torch.Tensor = file.get_tensor(name)
            return loaded

    def part(self, name: str, box: Sequence[slice]) -> torch.Tensor:
        """The part `box` of the tensor called `name`; no more than it is read from the file."""
        if name in self.held:
            return self.held[name][tuple(box)]
        with _opened(self.tensors[name].shard) as file:
            loaded: torch.Tensor = file.get_slice(name)[tuple(box)] if box else file.get_tensor(name)
            return loaded

    def in_memory(self) -> Weights:
        """The same tensors, all of them read now: what happens to the files later changes nothing."""
        # A copy: what the library gives may be a view of the file.
        return Weights(self.tensors, {name: tensor.clone() for name, tensor in self})

    def shards(self) -> dict[Path, list[str]]:
        """The names of the tensors in each file."""
        names: dict[Path, list[str]] = {}
        for name, entry in self.tensors.items():
            names.setdefault(entry.shard, []).append(name)
        return names

    def sha256(self, cache: Cache | None = None, say: Say | None = None) -> str:
        """The hash of all tensors' content; raises InputError where one holds NaN or infinity.

        sha256 over one line `name dtype shape sha256-of-bytes` for each tensor, sorted by name: the same for
        the same tensors, however they are spread over files and wherever those lie. With a `cache`, a file
        is read once and its digests are remembered until it changes. Held tensors are hashed as they are.
        """
        digests: dict[str, str] = {}
        for shard, names in self.shards().items():

            def scan(shard: Path = shard, names: list[str] = names) -> dict[str, str]:
                if say is not None:
                    say(f"checking {shard.name}")
                if self.held:
                    return _digests(shard, names, self.held.__getitem__)
                with _opened(shard) as file:
                    return _digests(shard, names, file.get_tensor)

            digests.update(scan() if cache is None or self.held else cache.remember(shard, "tensors", scan))
        lines = [
            f"{name} {entry.dtype} {list(entry.shape)} {digests[name]}\n"
            for name, entry in sorted(self.tensors.items())
        ]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def open_file(path: Path) -> Weights:
    """The tensors of one safetensors file whose header fits its length; raises InputError for any other."""
    with _opened(path) as file:
        tensors = {}
        for name in file.keys():  # noqa: SIM118 - not a mapping
            part = file.get_slice(name)
            tensors[name] = TensorEntry(path, part.get_dtype(), tuple(part.get_shape()))
    return Weights(tensors)


def open_model_weights(directory: Path) -> Weights:
    """The weights of a model directory, through its index or its single file.

    A whole single file goes before an index whose shards are not all there, which an earlier save left
    behind. Raises InputError for missing, truncated or corrupt files, for an index that disagrees with its
    shards, for pickled weights, and where a file lies beside the weights that other programs would load
    instead.
    """
    index, single = directory / INDEX, directory / SINGLE
    is_stale = index.is_file() and single.is_file() and not _has_shards(index)
    if index.is_file() and not is_stale:
        weights = _open_indexed(index)
    elif single.is_file():
        weights = open_file(single)
    else:
        raise InputError(_no_weights(directory))
    if not weights.tensors:
        raise InputError(f"{directory}: the weights hold no tensors; copy the model again")
    used = {path.name for path in weights.shards()}
    beside = sorted(path.name for path in directory.glob("*.safetensors") if path.name not in used)
    if index.is_file():
        # Readers agree on the shards of an index, except that some prefer a file of the single name.
        stray = [] if is_stale else [name for name in beside if name == SINGLE]
    else:
        stray = [name for name in beside if not name.startswith(_MISTRALS_OWN)]
    if stray:
        raise InputError(
            f"{directory}: {stray[0]} lies beside the weights {', '.join(sorted(used)[:3])}, and programs "
            "differ in which of them they load; keep one set of weights in the folder"
        )
    return weights


def are_alone(directory: Path, weights: Weights) -> bool:
    """Whether vLLM, which follows any index and else reads all files, would read just `weights`."""
    used = {path.name for path in weights.shards()}
    index = directory / INDEX
    if index.is_file():
        return set(read_json(index).get("weight_map", {}).values()) == used
    return {path.name for path in directory.glob("*.safetensors")} == used


def write_weights(
    directory: Path, tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: int = _SHARD_BYTES
) -> None:
    """Writes a model's tensors to `directory` in shards of about `shard_bytes`, with an index if several.

    Holds one shard in memory. Raises OSError where the disk does not take them.
    """
    shards: list[list[str]] = []
    pending: dict[str, torch.Tensor] = {}
    total = size = 0
    for name, tensor in tensors:
        n_bytes = tensor.numel() * tensor.element_size()
        if pending and size + n_bytes > shard_bytes:
            shards.append(_write_shard(directory, len(shards), pending))
            pending, size = {}, 0
        pending[name] = tensor.contiguous()
        size += n_bytes
        total += n_bytes
    shards.append(_write_shard(directory, len(shards), pending))
    if len(shards) == 1:
        _part(directory, 0).rename(directory / SINGLE)
        return
    weight_map = {}
    for number, names in enumerate(shards):
        final = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        _part(directory, number).rename(directory / final)
        weight_map.update(dict.fromkeys(names, final))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True), encoding="utf-8")


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    import torch

    # Either of them makes the sum one too, and a sum reads the tensor once; only it may overflow by itself.
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in the file at `path`; raises InputError where that is not what the file holds."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}); copy it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a JSON {type(content).__name__}, expected an object; copy it again")
    return content


def _part(directory: Path, number: int) -> Path:
    return directory / f"part-{number}.safetensors"


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes a safetensors file; raises OSError with its number where the disk does not take it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = errno.EIO if found is None else int(found[1])
        raise OSError(number, str(error) if found is None else os.strerror(number), str(path)) from error
    # The library makes its files private; these are as readable as the folder they lie in.
    path.chmod(path.parent.stat().st_mode & 0o666)


def _write_shard(directory: Path, number: int, tensors: dict[str, torch.Tensor]) -> list[str]:
    write_tensors(_part(directory, number), tensors)
    return list(tensors)


def _opened(path: Path) -> Any:
    """A context manager that reads the safetensors file at `path`."""
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        with path.open("rb") as file:
            pointer = file.read(20).startswith(b"version https://git-")
        raise InputError(
            f"{path} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`"
            if pointer
            else f"{path} is not a whole safetensors file ({error}): truncated or corrupt; copy it again"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _has_shards(index: Path) -> bool:
    """Whether every file that the index names lies beside it; not, where it cannot be read."""
    try:
        shards = read_json(index).get("weight_map")
    except InputError:
        return False
    return isinstance(shards, dict) and all((index.parent / str(name)).is_file() for name in shards.values())


def _open_indexed(index: Path) -> Weights:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise InputError(f"{index} has no weight_map from tensor names to file names; copy it again")
    tensors: dict[str, TensorEntry] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise InputError(f'{index} names the file "{shard}"; expected a file name in the same folder')
        path = index.parent / shard
        if not path.is_file():
            raise InputError(f"{path} is missing though {index.name} lists it; download the model again")
        for name, entry in open_file(path).tensors.items():
            if weight_map.get(name) != shard:
                said = f"in {weight_map[name]}" if name in weight_map else "nowhere"
                raise InputError(
                    f"{path} holds the tensor {name}, which {index.name} puts {said}; copy the model again"
                )
            tensors[name] = entry
    for name, shard in weight_map.items():
        if name not in tensors:
            raise InputError(
                f"{index.parent / shard} lacks the tensor {name} that {index.name} lists; copy it again"
            )
    return Weights(tensors)


def _no_weights(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir())
    if pickled := [name for name in names if name.endswith(_PICKLES)]:
        return (
            f"{directory}: {pickled[0]} holds pickled weights, which can run code and are never loaded; "
            f"convert them to {SINGLE} with transformers' save_pretrained where you trust them"
        )
    if other := [name for name in names if name.endswith(".safetensors")]:
        return f"{directory} holds {other[0]}, expected {SINGLE} or {INDEX}; convert it to that layout"
    return f"{directory} holds no weights, expected {SINGLE} or {INDEX}; copy or download the model again"


def _digests(shard: Path, names: list[str], read: Callable[[str], torch.Tensor]) -> dict[str, str]:
    """The sha256 of each tensor's bytes; raises InputError at the first that is not finite."""
    n_threads = min(4, os.cpu_count() or 1)

    # Each thread takes every so many names: a task for each tensor would cost more than hashing a small one.
    def every(start: int) -> dict[str, str]:
        return {name: _digest(shard, name, read(name)) for name in names[start::n_threads]}

    with ThreadPoolExecutor(n_threads) as pool:
        parts = pool.map(every, range(n_threads))
        return {name: digest for part in parts for name, digest in part.items()}


def _digest(shard: Path, name: str, tensor: torch.Tensor) -> str:
    import torch

    digest = hashlib.sha256()
    flat = tensor.reshape(-1)
    for start in range(0, flat.numel(), _SCAN_ELEMENTS):
        part = flat[start : start + _SCAN_ELEMENTS]
        digest.update(part.view(torch.uint8).numpy().data)
        # The 8-bit floats have no isfinite of their own.
        values = part.float() if part.is_floating_point() and part.element_size() == 1 else part
        if not is_finite(values):
            raise InputError(
                f"{shard}: the tensor {name} holds NaN or infinity; the file is damaged or training diverged"
            )
    return digest.hexdigest()
