"""The tokenizer of a model folder: what its own files say, and what stands before and after a text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from morfi.cache import Cache, Manifest
from morfi.checkpoints.own_tokenizer import (
    auto_tokenizer,
    behaviour,
    has_tokens,
    known_text,
    own_tokenizer,
    token_ids,
)
from morfi.checkpoints.weights import read_json
from morfi.errors import InputError, MorfiError, nearest
from morfi.files import canonical_sha256, read_once

BOS_CHOICES = ("auto", "yes", "no")
# Trained with BOS in front of every text, and of little use without: Gemma (by model_type, for others have a
# "<bos>" as well), Llama 3 and 4, DeepSeek and its distilled models, Command R.
_GEMMA, _GEMMA_BOS = "gemma", "<bos>"
_ALWAYS = ("<|begin_of_text|>", "<｜begin▁of▁sentence｜>", "<BOS_TOKEN>")  # noqa: RUF001
# The vocabulary of Llama 1 and 2 and of Mistral begins so; add_bos_token: false is believed there.
_LLAMA_TYPES = ("llama", "mistral", "mixtral", "ministral")
_LLAMA_FIRST = ("<unk>", "<s>", "</s>")
_LLAMA_BOS = _LLAMA_FIRST[1]
_FRAMING = ("add_bos_token", "add_eos_token")  # settings of tokenizer_config.json
_PLAIN = "llama"  # a family whose tokenizers are of the class that their settings name
_FORMAT = 1  # of the folders written for vLLM


@dataclass(frozen=True, slots=True)
class FolderTokenizer:
    """A tokenizer of transformers that encodes and decodes as the folder's own files say.

    It puts BOS in front where that was decided, and nothing behind. `changes` names what transformers' own
    AutoTokenizer does otherwise with this folder, with a line about each for people.
    `as_auto`: AutoTokenizer makes the same of the folder, so that others may load it from there.
    """

    tokenizer: Any
    changes: Mapping[str, str]
    as_auto: bool


@dataclass(frozen=True, slots=True)
class Frame:
    """The token ids that a tokenizer puts before and after a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def check_bos(bos: str) -> None:
    """Raises InputError for a --bos that there is not."""
    if bos not in BOS_CHOICES:
        raise InputError(
            f'--bos is "{bos}"; expected one of {", ".join(BOS_CHOICES)}.{nearest(bos, BOS_CHOICES)}'
        )


def load_tokenizer(model_dir: Path | str, bos: str = "auto") -> Any:
    """The tokenizer of `open_tokenizer`; a preset's folder is `resolve(...).model_dir`.

    >>> load_tokenizer(resolve("smollm2").model_dir).encode("Q: In which country is Lyon?\\nA:")
    """
    return open_tokenizer(Path(model_dir), bos).tokenizer


def open_tokenizer(model_dir: Path, bos: str = "auto") -> FolderTokenizer:
    """The tokenizer saved in `model_dir`, as its own files say.

    transformers builds some tokenizers anew from their vocabulary, and so loses what tokenizer.json says
    beside it; then tokenizer.json is taken itself. `bos` "yes" and "no" decide whether BOS stands in front;
    with "auto" it does where the folder's files say so, or where the family needs it (`needs_bos`). EOS is
    never appended. Raises InputError where there is no tokenizer that can be used so.
    """
    check_bos(bos)
    return read_once(model_dir, ("tokenizer", bos), partial(_open, model_dir, bos))


def _open(model_dir: Path, bos: str) -> FolderTokenizer:
    rebuilt = auto_tokenizer(model_dir)
    found, auto_bos = own_tokenizer(model_dir, rebuilt), rebuilt.bos_token
    auto_frame = frame_of(rebuilt if has_tokens(rebuilt) else found, model_dir)
    changes: dict[str, str] = {}
    if found is not rebuilt and behaviour(found) != behaviour(rebuilt):
        changes["tokenizer"] = (
            f"the vocabulary file in {model_dir} is followed as it is: transformers' "
            f"{type(rebuilt).__name__} would write other tokens"
        )
    _mark_ends(found, model_dir)
    wanted, why = _bos_decision(bos, found, frame_of(found, model_dir), model_dir)
    _set_frame(found, wanted, model_dir)
    frame = frame_of(found, model_dir)
    if frame.after != auto_frame.after:
        changes["eos"] = (
            f"the tokenizer in {model_dir} appends {_names(found, auto_frame.after)} to every text; prompts "
            "are made without it"
        )
    if frame.before != auto_frame.before:
        changes["bos"] = why
    as_auto = found is rebuilt and frame == auto_frame and found.bos_token == auto_bos
    return FolderTokenizer(found, changes, as_auto)


def tokenizer_folder(found: FolderTokenizer, model_dir: Path, cache: Cache | None = None) -> Path:
    """The folder from which transformers and vLLM load this tokenizer of `model_dir`.

    `model_dir` itself where that gives the same, else an entry of the cache, written if it is not there.
    """
    if found.as_auto:
        return model_dir
    parts = {
        "kind": "tokenizer",
        "format": _FORMAT,
        "backend": found.tokenizer.backend_tokenizer.to_str(),
        "special": {name: str(token) for name, token in found.tokenizer.special_tokens_map.items()},
        "chat_template": found.tokenizer.chat_template,
    }
    manifest = Manifest("tokenizer", model_dir.name, {"model": str(model_dir)})

    def build(directory: Path) -> None:
        _write(directory, found.tokenizer, model_dir)

    return (cache or Cache()).get_or_create(canonical_sha256(parts), build, manifest)


def _write(directory: Path, tokenizer: Any, model_dir: Path) -> None:
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    # What stands around a text is in tokenizer.json; these would put it there anew.
    kept = {key: value for key, value in read_json(path).items() if key not in _FRAMING}
    path.write_text(json.dumps({**kept, "tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8")
    # Where the model's own is, transformers takes the family's class, whatever the tokenizer's settings say.
    (directory / "config.json").write_text(json.dumps({"model_type": _PLAIN}), encoding="utf-8")
    again = auto_tokenizer(directory)
    if (behaviour(again), frame_of(again)) != (behaviour(tokenizer), frame_of(tokenizer)):
        raise MorfiError(
            f"the tokenizer of {model_dir} does not come back as it was saved in {directory}; save "
            "it with a current transformers"
        )


def frame_of(tokenizer: Any, model_dir: Path | None = None) -> Frame:
    """The tokens put around a text; raises InputError where it changes the text's own tokens."""
    text = known_text(tokenizer, model_dir)
    bare, full = (token_ids(tokenizer, text, special=add) or [] for add in (False, True))
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return Frame(tuple(full[:start]), tuple(full[start + len(bare) :]))
    raise InputError(f"the tokenizer in {model_dir} writes a text otherwise when it adds special tokens")


def needs_bos(model_type: str, bos_token: str | None, first: Sequence[str], *, told: bool | None) -> bool:
    """Whether a model of this family was trained with `bos_token` in front of every text.

    `first` are the first tokens of its vocabulary, `told` is add_bos_token of tokenizer_config.json.
    """
    if bos_token in _ALWAYS or (bos_token == _GEMMA_BOS and _GEMMA in model_type):
        return True
    is_llama = model_type in _LLAMA_TYPES and tuple(first[:3]) == _LLAMA_FIRST and bos_token == _LLAMA_BOS
    return is_llama and told is not False


def control_tokens(tokenizer: Any) -> frozenset[int]:
    """The ids that no text of a question may hold: special tokens and end tokens.

    The unknown token is among them, though a tokenizer also writes it for characters that it lacks.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {index for index, token in added.items() if token.special} | set(tokenizer.all_special_ids)
    return frozenset(found)


def _config(model_dir: Path, name: str = "config.json") -> Mapping[str, Any]:
    path = model_dir / name
    return read_json(path) if path.is_file() else {}


def _mark_ends(tokenizer: Any, model_dir: Path) -> None:
    """Makes the model's end tokens special, where they are added tokens and are not."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        return
    named = [
        _config(model_dir, name).get("eos_token_id") for name in ("generation_config.json", "config.json")
    ]
    added = tokenizer.added_tokens_decoder
    for index in {one for ends in named for one in (ends if isinstance(ends, list) else [ends])}:
        token = added.get(index) if isinstance(index, int) else None
        if token is not None and not token.special:
            token.special = True
            tokenizer.backend_tokenizer.add_special_tokens([token])


def _bos_decision(bos: str, tokenizer: Any, frame: Frame, model_dir: Path) -> tuple[tuple[int, ...], str]:
    """The ids that are to stand before a text, and why that is not what AutoTokenizer does, if it is not."""
    model_type = str(_config(model_dir).get("model_type") or "")
    told = _config(model_dir, "tokenizer_config.json").get("add_bos_token")
    is_named = tokenizer.bos_token_id is not None
    if not is_named:
        tokenizer.bos_token = _unnamed_bos(tokenizer, model_dir, told=told)
    number = tokenizer.bos_token_id
    if number is None:
        if bos == "yes":
            raise InputError(f"--bos yes: the tokenizer in {model_dir} has no BOS token; leave --bos out")
        return frame.before, ""
    by_files = told is True or number in frame.before
    needed = needs_bos(model_type, tokenizer.bos_token, _first_tokens(tokenizer), told=told)
    wanted = {"yes": True, "no": False}.get(bos, by_files or needed)
    name = tokenizer.bos_token
    if bos != "auto":
        why = f"BOS ({name}) is {'put in front of' if wanted else 'left out of'} every prompt: --bos {bos}"
    elif wanted and needed:
        why = (
            f"BOS ({name}) is put in front of every prompt: models of this family ({model_type}) need it, "
            f"and the tokenizer in {model_dir} does not {'add' if is_named else 'name'} it (--bos no leaves "
            "it out)"
        )
    else:
        said = "put in front of" if wanted else "left out of"
        why = f"BOS ({name}) is {said} every prompt, as the files in {model_dir} say"
    if wanted:
        return (frame.before if number in frame.before else (number, *frame.before)), why
    return tuple(index for index in frame.before if index != number), why


def _unnamed_bos(tokenizer: Any, model_dir: Path, *, told: bool | None) -> str | None:
    """The BOS token of a tokenizer that names none: what config.json says, where that is its family's own."""
    config = _config(model_dir)
    model_type = str(config.get("model_type") or "")
    if _GEMMA in model_type and _GEMMA_BOS in tokenizer.get_vocab():
        return _GEMMA_BOS
    text = config.get("text_config")  # of models that take pictures as well
    numbers = [one.get("bos_token_id") for one in (config, text) if isinstance(one, Mapping)]
    added, first = getattr(tokenizer, "added_tokens_decoder", {}), _first_tokens(tokenizer)
    for number in numbers:
        if isinstance(number, int) and number in added:
            token = str(added[number])
            if needs_bos(model_type, token, first, told=told):
                return token
    return None


def _first_tokens(tokenizer: Any) -> list[str]:
    return [str(token) for token in tokenizer.convert_ids_to_tokens([0, 1, 2])]


def _set_frame(tokenizer: Any, before: tuple[int, ...], model_dir: Path) -> None:
    """Makes the tokenizer put `before`, and nothing else, around a text."""
    from tokenizers import processors

    frame = frame_of(tokenizer, model_dir)
    ends = control_tokens(tokenizer)
    if not set(frame.after) <= ends:
        raise InputError(
            f"the tokenizer in {model_dir} appends {_names(tokenizer, frame.after)} to every text, so that "
            "no prompt could be continued; save it without"
        )
    if frame == Frame(before, ()):
        return
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise InputError(
            f"the tokenizer in {model_dir} has no fast form, so that what it puts around a text cannot be "
            "changed; save tokenizer.json beside the weights"
        )
    pieces = [
        {"id": f"before {place}", "ids": [index], "tokens": [str(tokenizer.convert_ids_to_tokens(index))]}
        for place, index in enumerate(before)
    ]
    single = [*(piece["id"] for piece in pieces), "$A"]
    tokenizer.backend_tokenizer.post_processor = (
        processors.TemplateProcessing(single=single, pair=[*single, "$B"], special_tokens=pieces)
        if before
        else None
    )
    if frame_of(tokenizer, model_dir) != Frame(before, ()):
        raise InputError(f"the tokenizer in {model_dir} does not take BOS or EOS otherwise than it has them")


def _names(tokenizer: Any, indices: Sequence[int]) -> str:
    return " ".join(str(tokenizer.convert_ids_to_tokens(index)) for index in indices)
