"""From what a user gives as --ckpt to a directory that vLLM can serve, identified by content."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from morfi.cache import Cache, Manifest
from morfi.checkpoints.adapters import CONFIG, Adapter, load_adapter
from morfi.checkpoints.embedded import embedded_model
from morfi.checkpoints.fit import check_whole
from morfi.checkpoints.live import check_live_merge, check_same_form
from morfi.checkpoints.lora import merged_tensors
from morfi.checkpoints.merge_plan import plan_merge
from morfi.checkpoints.model_files import (
    DTYPES,
    SIDE_FILES,
    TOKENIZER_FILES,
    ModelFiles,
    open_model,
    refuse_custom_code,
)
from morfi.checkpoints.own_tokenizer import has_slow_vocabulary
from morfi.checkpoints.presets import PRESETS
from morfi.checkpoints.text_model import text_folder
from morfi.checkpoints.vocabulary import brings_tokenizer, check_same_tokenizer
from morfi.checkpoints.weights import INDEX, are_alone, write_weights
from morfi.device import serving_dtype
from morfi.errors import InputError, nearest, reason_of
from morfi.files import canonical_sha256
from morfi.terminal import Say

_TRAINED = "manifest.json"  # of an adapter that `morfi train` wrote, whose base is named as for --ckpt
_MERGE_FORMAT = 2  # of merged entries; a new number merges again
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILES = [
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    *SIDE_FILES,
]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model ready to be served from `model_dir`, in `dtype`.

    `sha256` stands for all that decides its answers but the serving dtype of a model that is not merged:
    weights, configuration and tokenizer (`ModelFiles.sha256`); for a merged one it is the hash of base,
    adapter, dtype and merge format, which is also its key in the cache.

    One with an `adapter_dir` is not merged yet: `model_dir` is its base's, and only an engine that serves the
    base makes it out of the two (`morfi.serve.engine.Engine.load_checkpoint`).

    >>> checkpoint = resolve("my-adapter", base="smollm2")
    >>> checkpoint.name, checkpoint.dtype, checkpoint.sha256
    """

    name: str
    model_dir: Path
    sha256: str
    base: str
    base_sha256: str
    adapter_sha256: str | None
    dtype: str
    adapter_dir: Path | None = None


def resolve(
    ckpt: str,
    *,
    base: str | None = None,
    dtype: str | None = None,
    cache: Cache | None = None,
    say: Say | None = None,
) -> Checkpoint:
    """The checkpoint that `ckpt` names: a preset, a model or LoRA adapter folder, or a hub id.

    An adapter is merged into its base (`base`, else the one its configuration names) once, into `cache`.
    `dtype` is the serving dtype, by default what `serving_dtype` makes of the base's own. A preset's name
    goes before a folder of that name. Raises InputError for whatever cannot be served as it is.

    >>> resolve("smollm2").model_dir
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(
            f'unknown dtype "{dtype}"; expected one of {", ".join(DTYPES)}.{nearest(dtype, DTYPES)}'
        )
    cache = cache or Cache()
    directory = _locate(ckpt, cache, say)
    if (directory / CONFIG).is_file():
        return _resolve_adapter(_name(ckpt), load_adapter(directory), base, dtype=dtype, cache=cache, say=say)
    if base is not None:
        raise InputError(
            f"--base {base} was given, but {ckpt} is not an adapter (it has no {CONFIG}); leave --base out"
        )
    model = open_model(directory)
    sha256 = model.sha256(cache, say)
    name = _name(ckpt)
    served_dir = _served_dir(model, sha256, name, cache, say)
    return Checkpoint(name, served_dir, sha256, name, sha256, None, dtype or serving_dtype(model.dtype))


def resolve_unmerged(
    ckpt: str, *, base: Checkpoint, cache: Cache | None = None, say: Say | None = None
) -> Checkpoint:
    """The checkpoint that the LoRA adapter `ckpt` makes of `base`, not merged: nothing is written.

    Its `sha256` is that which `resolve` gives to the merged one in the same dtype. Raises InputError where
    `resolve` would, for an adapter that names another base which is here to compare, and for one whose
    tokenizer is not the base's. Whether the tensors fit the base's is seen when an engine loads them.
    """
    assert base.adapter_dir is None
    cache = cache or Cache()
    directory = _locate(ckpt, cache, say)
    if not (directory / CONFIG).is_file():
        raise InputError(f"{ckpt} is not an adapter (it has no {CONFIG}); expected a LoRA adapter's folder")
    adapter = load_adapter(directory)
    refuse_custom_code(directory)
    named = adapter.base
    if named is not None and (named in PRESETS or Path(named).expanduser().is_dir()):
        found = open_model(_locate_base(adapter, cache, say)).sha256(cache, say)
        if found != base.sha256:
            raise InputError(
                f"{ckpt} was trained on {named}, which does not hold the model {base.name} that is served "
                f"(sha256 {found[:12]}, expected {base.sha256[:12]}); give the adapter's own base"
            )
    check_same_tokenizer(directory, base.model_dir)
    adapter_sha256 = adapter.sha256(cache, say)
    return Checkpoint(
        name=_name(ckpt),
        model_dir=base.model_dir,
        sha256=_merged_sha256(
            directory, base_sha256=base.sha256, adapter_sha256=adapter_sha256, dtype=base.dtype
        ),
        base=base.name,
        base_sha256=base.sha256,
        adapter_sha256=adapter_sha256,
        dtype=base.dtype,
        adapter_dir=directory,
    )


def resolve_live(
    ckpt: str, *, base: Checkpoint, cache: Cache | None = None, say: Say | None = None
) -> Checkpoint:
    """The checkpoint that `ckpt` names, for an engine that serves `base`: its adapter, or a whole model.

    An adapter is not merged (`resolve_unmerged`). A model must be of the base's form (`check_same_form`) and
    tokenizer; its `model_dir` is then its own, its `base_sha256` that of the engine's model.
    """
    cache = cache or Cache()
    directory = _locate(ckpt, cache, say)
    if (directory / CONFIG).is_file():
        checkpoint = resolve_unmerged(ckpt, base=base, cache=cache, say=say)
        files = open_model(base.model_dir)
        check_live_merge(files, plan_merge(files, load_adapter(directory), base.dtype))
        return checkpoint
    model = open_model(directory)
    check_same_form(model, open_model(base.model_dir))
    check_same_tokenizer(directory, base.model_dir)
    sha256 = model.sha256(cache, say)
    return Checkpoint(_name(ckpt), directory, sha256, base.name, base.sha256, None, base.dtype)


def model_here(given: str, sha256: str, cache: Cache | None = None) -> ModelFiles | None:
    """The files of the model that `given` names, where they lie here as they were; nothing is fetched."""
    cache = cache or Cache()
    try:
        model = open_model(text_folder(_found(given, cache, None, None, fetch=False), cache))
        return model if model.sha256(cache) == sha256 else None
    except InputError:
        return None


def _merged_sha256(adapter_dir: Path, **sources: str) -> str:
    # Entries of format 1 were written before tokenizers in this form counted.
    own = {"tokenizer": "vocab.json"} if has_slow_vocabulary(adapter_dir) else {}
    return canonical_sha256({"kind": "merged", "format": _MERGE_FORMAT, **own, **sources})


def _resolve_adapter(
    name: str,
    adapter: Adapter,
    base: str | None,
    *,
    dtype: str | None,
    cache: Cache,
    say: Say | None,
) -> Checkpoint:
    refuse_custom_code(adapter.path)
    if base is not None:
        base_dir = _locate(base, cache, say, adapter.config.get("revision"))
    else:
        base_dir = _locate_base(adapter, cache, say)
        base = str(adapter.base)
    if (base_dir / CONFIG).is_file():
        raise InputError(f"the base {base} is an adapter itself; give the model it was trained on as --base")
    model = open_model(base_dir)
    check_whole(adapter, model)
    dtype = dtype or serving_dtype(model.dtype)
    base_sha256, adapter_sha256 = model.sha256(cache, say), adapter.sha256(cache, say)
    sources = {"base_sha256": base_sha256, "adapter_sha256": adapter_sha256, "dtype": dtype}
    key = _merged_sha256(adapter.path, **sources)
    manifest = Manifest(
        "merged", f"{name} on {_name(base)}", {**sources, "base": base, "adapter": str(adapter.path)}
    )

    def build(directory: Path) -> None:
        if say is not None:
            say(f"merging {manifest.name} ({len(model.weights.tensors)} tensors)")
        _write_merged(directory, model, adapter, dtype)

    model_dir = cache.get_or_create(key, build, manifest, say)
    return Checkpoint(name, model_dir, key, _name(base), base_sha256, adapter_sha256, dtype)


def _write_merged(directory: Path, base: ModelFiles, adapter: Adapter, dtype: str) -> None:
    merge = plan_merge(base, adapter, dtype)
    write_weights(directory, merged_tensors(base.weights, merge))
    config = json.dumps(merge.config(base.config), indent=2, sort_keys=True)
    (directory / "config.json").write_text(config, encoding="utf-8")
    # An adapter saved with its tokenizer was trained with that one.
    own_tokenizer = brings_tokenizer(adapter.path, base.path)
    for name in SIDE_FILES:
        source = (adapter if own_tokenizer and name in TOKENIZER_FILES else base).path / name
        if source.is_file():
            shutil.copyfile(source, directory / name)


def _served_dir(model: ModelFiles, sha256: str, name: str, cache: Cache, say: Say | None) -> Path:
    """The model's folder; one that links to its weights where vLLM would make something else of the folder.

    That is where it would read other files there as well, or share an output head that has values of its own.
    """
    if are_alone(model.path, model.weights) and model.served_config == model.config:
        return model.path

    def build(directory: Path) -> None:
        config = json.dumps(model.served_config, indent=2, sort_keys=True)
        (directory / "config.json").write_text(config, encoding="utf-8")
        for file in SIDE_FILES:
            if (model.path / file).is_file():
                shutil.copyfile(model.path / file, directory / file)
        for shard in model.weights.shards():
            (directory / shard.name).symlink_to(shard.resolve())
        if len(model.weights.shards()) > 1:
            shutil.copyfile(model.path / INDEX, directory / INDEX)

    key = canonical_sha256({"kind": "linked", "path": str(model.path), "sha256": sha256})
    return cache.get_or_create(key, build, Manifest("linked", name, {"path": str(model.path)}), say)


def _locate_base(adapter: Adapter, cache: Cache, say: Say | None) -> Path:
    """The directory of the base that the adapter's configuration names.

    Names are PEFT's, for which a folder here goes before anything else, except in an adapter of `morfi
    train`. Raises InputError, which says to give --base, where it is not here.
    """
    named = adapter.base
    if named is None:
        raise InputError(f"{adapter.path / CONFIG} names no base model; give it with --base")
    path = Path(named).expanduser()
    if (path / "config.json").is_file() and not (adapter.path / _TRAINED).is_file():
        return text_folder(path.absolute(), cache, say)
    try:
        return _locate(named, cache, say, adapter.config.get("revision"))
    except InputError as error:
        raise InputError(
            f"the base of {adapter.path} is not here; give it with --base. {CONFIG} names it {named!r}: "
            f"{error}"
        ) from error


def _locate(given: str, cache: Cache, say: Say | None, revision: str | None = None) -> Path:
    """The local directory of a preset, path or hub id, downloaded or converted if need be.

    Of a model that reads images too it is that of the text model in it.
    """
    return text_folder(_found(given, cache, say, revision), cache, say)


def _found(given: str, cache: Cache, say: Say | None, revision: str | None, *, fetch: bool = True) -> Path:
    known = PRESETS.get(given)
    if known is not None:
        if known.embedded is not None:
            return embedded_model(known, cache, say)
        return _download(known.model_id, None, say, fetch=fetch)
    path = Path(os.path.expanduser(given))  # of a user who is not there: as it stands
    if given and path.is_dir():
        return path.absolute()
    if given and path.exists():
        raise InputError(f"{given} is a file, expected a model or adapter folder; give the folder it lies in")
    if may_be_on_hub(given):
        return _download(given, revision, say, fetch=fetch)
    if "/" in given or given.startswith(("~", ".")):
        raise InputError(f"there is no folder {given}; expected a model or adapter folder")
    raise InputError(
        f'unknown checkpoint "{given}"; expected a preset ({", ".join(PRESETS)}), a folder, or a hub id '
        f"such as {PRESETS['llama-3.1-8b'].model_id}.{nearest(given, PRESETS)}"
    )


def folder_here(ckpt: str, say: Say | None = None, cache: Cache | None = None) -> Path | None:
    """The folder of the model that `ckpt` names where this machine has its configuration; else None.

    Nothing is downloaded, and the weights need not be there; an embedded model is converted if need be.
    """
    from huggingface_hub import errors, snapshot_download

    known = PRESETS.get(ckpt)
    if known is not None and known.embedded is not None:
        try:
            return embedded_model(known, cache or Cache(), say)
        except InputError:  # its package is not installed
            return None
    path = Path(os.path.expanduser(ckpt))
    if known is None and ckpt and (path / "config.json").is_file():
        return path.absolute()
    model_id = ckpt if known is None else known.model_id
    if not may_be_on_hub(model_id):
        return None
    try:
        found = Path(snapshot_download(model_id, allow_patterns=_HUB_FILES, local_files_only=True))
    except (errors.LocalEntryNotFoundError, OSError):
        return None
    return found if (found / "config.json").is_file() else None


def may_be_on_hub(given: str) -> bool:
    """Whether the name has the form of a repository of the hub: one slash, and no dot at its beginning."""
    return _HUB_ID.fullmatch(given) is not None


def _download(model_id: str, revision: str | None, say: Say | None, *, fetch: bool) -> Path:
    """The folder of a model of the hub; without `fetch` only what was fetched before."""
    from huggingface_hub import errors, snapshot_download

    if say is not None:
        say(f"fetching {model_id} from the hub")
    try:
        return Path(
            snapshot_download(
                model_id, revision=revision, allow_patterns=_HUB_FILES, local_files_only=not fetch
            )
        )
    # HTTPError is that of the client which the installed huggingface_hub uses.
    except (errors.HFValidationError, errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        reason = reason_of(error)
        raise InputError(
            f"{model_id} is not a folder here and could not be fetched from the hub ({reason}); check the "
            "name, the network and your access to it, or download it elsewhere and give its folder"
        ) from error


def _name(given: str) -> str:
    """The folder's name for a path, else what was given."""
    path = Path(os.path.expanduser(given))
    return path.resolve().name if given not in PRESETS and path.is_dir() else given
