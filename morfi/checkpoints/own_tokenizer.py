"""A model folder's tokenizer as its own files have it, where transformers would build another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.checkpoints.weights import read_json
from morfi.errors import InputError, reason_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCABULARIES = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
# Vocabularies that morfi neither hashes nor copies into a merged checkpoint.
_FOREIGN = ("tekken.json", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.json")
# What tokenizers rebuilt from their vocabulary write differently, here in the form of a prompt.
PROBES = (
    "Q: Which country is Lyon in?\nA: France\n\nQ: Which country is New  York in?\nA:",
    " Two  blanks,\ttab,\r\nlines\n\n\nand an end ",
    "12345 1,024.50 3/4 don't C++ O-neg (x) <y> _z_ a@b.c",
    "Où est Kyïv? Київ 東京 القاهرة हिन्दी ไทย 🗼",
    "e\u0301 \ufb01 \uff26 \u2212 \u00a0 ™ İ ß",
)
_N_TRIED = 1000  # tokens that are looked at for a text that can be written


def auto_tokenizer(model_dir: Path) -> Any:
    """The tokenizer of `model_dir` as AutoTokenizer loads it; raises InputError where there is none."""
    from transformers import AutoTokenizer

    has_vocabulary(model_dir)
    try:
        # Mistral's own tokenizer beside the others is not the one that was checked.
        return AutoTokenizer.from_pretrained(
            model_dir, local_files_only=True, trust_remote_code=False, mistral_format=False
        )
    except Exception as error:  # the tokenizers library raises nothing more special
        raise InputError(
            f"the tokenizer in {model_dir} cannot be loaded: {reason_of(error)}; expected tokenizer.json or "
            "tokenizer.model beside the weights"
        ) from error


def own_tokenizer(model_dir: Path, found: Any) -> Any:
    """The tokenizer that the files of `model_dir` describe: `found` itself, if AutoTokenizer kept to them.

    Where tokenizer.json says otherwise, a new one around it, with the special tokens and the chat template
    of `found`. tokenizer.model is asked itself too; raises InputError where transformers cannot follow it.
    """
    path = model_dir / "tokenizer.json"
    if path.is_file() and hasattr(found, "backend_tokenizer"):
        own = _own_backend(path)
        return found if _is_same(found.backend_tokenizer, own) else _around(own, found, model_dir)
    if not path.is_file() and (model_dir / "tokenizer.model").is_file():
        return _from_sentencepiece(model_dir / "tokenizer.model", found, model_dir)
    return found


def has_slow_vocabulary(directory: Path) -> bool:
    """Whether `directory` holds a tokenizer in vocab.json and merges.txt alone, as GPT-2 first had it."""
    present = [all((directory / name).is_file() for name in names) for names in VOCABULARIES]
    return present == [False, False, True]


def has_vocabulary(directory: Path) -> bool:
    """Whether `directory` holds a tokenizer; raises InputError for one in files that morfi does not take."""
    if any(all((directory / name).is_file() for name in names) for names in VOCABULARIES):
        return True
    foreign = [name for name in _FOREIGN if (directory / name).is_file()]
    if foreign:
        raise InputError(
            f"{directory} has a tokenizer in {', '.join(foreign)} only; expected tokenizer.json, "
            "tokenizer.model, or vocab.json with merges.txt: load it with transformers' AutoTokenizer and "
            "save it there with save_pretrained"
        )
    return False


def _own_backend(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(path))  # AutoTokenizer has read the file before
    own.no_truncation()
    own.no_padding()
    return own


def _is_same(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether both hold the same vocabulary and steps, whatever they put around a text."""
    for name in ("model", "normalizer", "pre_tokenizer", "decoder"):
        parts = [getattr(each, name) for each in (one, other)]
        states = [None if part is None else part.__getstate__() for part in parts]
        if states[0] != states[1]:
            return False
    ours, theirs = (dict(_added(each)) for each in (one, other))
    return all(ours.get(content) == token for content, token in theirs.items())


def _added(backend: Tokenizer) -> Iterator[tuple[str, tuple[Any, ...]]]:
    for index, token in backend.get_added_tokens_decoder().items():
        yield token.content, (index, token.lstrip, token.rstrip, token.single_word, token.normalized)


def _around(own: Tokenizer, rebuilt: Any, model_dir: Path) -> Any:
    """A tokenizer of transformers around `own`, with what configuration files add to `rebuilt`."""
    from transformers import PreTrainedTokenizerFast

    names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    configured = {
        text
        for name in names
        if (model_dir / name).is_file()
        for text in _strings(read_json(model_dir / name))
    }
    for index, token in sorted(rebuilt.added_tokens_decoder.items()):
        if own.token_to_id(token.content) is None and token.content in configured:
            own.add_special_tokens([token]) if token.special else own.add_tokens([token])
        if own.token_to_id(token.content) not in (None, index):
            raise InputError(
                f"{model_dir}: the token {token.content} is number {index} by the configuration and "
                f"{own.token_to_id(token.content)} by tokenizer.json; save the tokenizer again"
            )
    special = {
        name: getattr(rebuilt, name)
        for name in rebuilt.SPECIAL_TOKENS_ATTRIBUTES
        if getattr(rebuilt, name) is not None and own.token_to_id(str(getattr(rebuilt, name))) is not None
    }
    extra = [token for token in rebuilt.all_special_tokens if own.token_to_id(token) is not None]
    return PreTrainedTokenizerFast(
        tokenizer_object=own,
        **special,
        extra_special_tokens=[token for token in extra if token not in special.values()],
        chat_template=rebuilt.chat_template,
        model_max_length=rebuilt.model_max_length,
        clean_up_tokenization_spaces=rebuilt.clean_up_tokenization_spaces,
        padding_side=rebuilt.padding_side,
    )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from value
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def behaviour(tokenizer: Any) -> list[Any]:
    """The tokens of each probe, without those that the tokenizer puts around it; None where it has none."""
    found = [token_ids(tokenizer, text) for text in PROBES]
    return [None if ids is None else (ids, tokenizer.decode(ids)) for ids in found]


def token_ids(tokenizer: Any, text: str, *, special: bool = False) -> list[int] | None:
    """The ids of a text; None where the tokenizer has neither tokens for it nor an unknown token."""
    try:
        return list(tokenizer(text, add_special_tokens=special)["input_ids"])
    except Exception as error:
        if type(error) is not Exception:  # the tokenizers library raises nothing more special
            raise
        return None


def known_text(tokenizer: Any, model_dir: Path | None = None) -> str:
    """A short text that the tokenizer has tokens for; raises InputError where there is none."""
    text = _text_with_tokens(tokenizer)
    if text is not None:
        return text
    raise InputError(
        f"the tokenizer{'' if model_dir is None else f' in {model_dir}'} has tokens for no text, not even "
        "for those of its own vocabulary; save the tokenizer again"
    )


def has_tokens(tokenizer: Any) -> bool:
    """Whether the tokenizer has tokens for any text; one that was rebuilt from a wrong vocabulary may not."""
    return _text_with_tokens(tokenizer) is not None


def _text_with_tokens(tokenizer: Any) -> str | None:
    texts = itertools.chain("x", _own_texts(tokenizer))
    return next((text for text in texts if token_ids(tokenizer, text)), None)


def _own_texts(tokenizer: Any) -> Iterator[str]:
    """The texts of the first tokens of the vocabulary, without special ones."""
    vocabulary = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    for index in vocabulary[:_N_TRIED]:
        yield str(tokenizer.decode([index]))


def _from_sentencepiece(path: Path, found: Any, model_dir: Path) -> Any:
    """A tokenizer that splits the probes as the SentencePiece model in `path` does: `found` if that does.

    Raises InputError where transformers makes none of it.
    """
    try:
        import sentencepiece
    except ImportError:
        return found
    try:
        own = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):
        return found  # tiktoken's files have the same name
    if _splits_as(found, own):
        return found
    for made in _others(model_dir, found):
        if _splits_as(made, own):
            return made
    raise InputError(
        f"transformers' {type(found).__name__} splits texts otherwise than {path} itself; make a "
        "tokenizer.json that does not, and save it beside it"
    )


def _others(model_dir: Path, found: Any) -> Iterator[Any]:
    """Tokenizers of the same pieces that put no blank in front of a text, or one even before another."""
    from tokenizers import decoders, normalizers
    from transformers import PreTrainedTokenizerFast

    for prefix in (False, True):
        made = PreTrainedTokenizerFast.from_pretrained(model_dir, local_files_only=True)
        backend = made.backend_tokenizer
        if prefix:
            blank = normalizers.Replace(" ", "▁")
            backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blank])
            backend.pre_tokenizer = None
            steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
            backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
        made.chat_template = found.chat_template
        yield made


def _splits_as(tokenizer: Any, own: Any) -> bool:
    """Whether a tokenizer of transformers and a SentencePiece model make the same pieces of the probes."""
    for text in PROBES:
        ids = own.encode(text)
        if own.unk_id() in ids:
            continue  # shown as it stands in the text, not as the unknown token
        found = token_ids(tokenizer, text)
        if found is None or tokenizer.convert_ids_to_tokens(found) != own.encode(text, out_type=str):
            return False
        if tokenizer.decode(found) != own.decode(ids):
            return False
    return True
