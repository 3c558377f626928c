"""Many prompts to token ids: in parts, and a beginning that many of them share only once.

Tokenizers of the `tokenizers` library cut a text into pieces before they look for tokens. Where a piece ends
at the end of a shared beginning, whatever follows, its tokens are those of beginning and rest side by side.
That is looked up, and tried out on some of the texts; where it does not hold, every text is encoded whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from morfi.errors import InputError
from morfi.terminal import Say

_PART = 4096  # texts encoded together: what the library makes of a text takes ten times its ids
_MANY = 20_000  # prompts; fewer are encoded before anybody wonders
_PAUSE_S = 2.0
_TRIED = 16  # texts of each beginning that are encoded both ways, besides one
_BEGINNING = 4  # for each way in which the characters after it begin


def encode(
    heads: Sequence[str],
    tails: Sequence[str],
    tokenizer: Any,
    *,
    special: bool,
    on_part: Callable[[int], None] | None = None,
) -> list[tuple[int, ...]]:
    """The token ids of each head and tail as one text, as the tokenizer itself gives them.

    `special` adds what the tokenizer adds to a text. `on_part` is called with the number of texts encoded.
    Raises InputError where the tokenizer has neither tokens for a text nor an unknown token.
    """
    encoder = _Encoder(tokenizer, special, on_part)
    groups: dict[str, list[int]] = {}
    for place, head in enumerate(heads):
        groups.setdefault(head, []).append(place)
    found: list[tuple[int, ...]] = [()] * len(heads)
    for head, places in groups.items():
        rests = [tails[place] for place in places]
        try:
            of_group = encoder.group(head, rests)
        except Exception as error:
            if type(error) is not Exception:  # the tokenizers library raises nothing more special
                raise
            raise InputError(
                f"the tokenizer cannot write all of the prompts ({error}): it lacks tokens for some text, "
                "and an unknown token; leave such questions out, or take the checkpoint's whole tokenizer"
            ) from error
        for place, ids in zip(places, of_group, strict=True):
            found[place] = ids
    return found


def n_tokens(texts: Sequence[str], tokenizer: Any) -> list[int]:
    """How many tokens each text has, without special ones."""
    encoder, found = _Encoder(tokenizer, special=False), list[int]()
    for start in range(0, len(texts), _PART):
        found += map(len, encoder.plain(texts[start : start + _PART]))
    return found


class _Encoder:
    """One tokenizer, and the numbers of its tokens, each of them one object in memory."""

    def __init__(self, tokenizer: Any, special: bool, on_part: Callable[[int], None] | None = None) -> None:
        self._tokenizer, self._special, self._on_part = tokenizer, special, on_part
        self._fast = getattr(tokenizer, "backend_tokenizer", None)
        self._number = dict[int, int]()

    def group(self, head: str, tails: Sequence[str]) -> list[tuple[int, ...]]:
        """The ids of `head` before each of `tails`."""
        if len(tails) > _TRIED and self._ends_a_piece(head, tails[0]):
            # How a tail begins decides whether the end of the head is a piece's end before it too.
            begun = {tail[:_BEGINNING]: tail for tail in tails}
            tried = list(tails[:: max(1, len(tails) // _TRIED)][:_TRIED]) + list(begun.values())
            whole, ends = self._called([head + tail for tail in tried], self._special), self._fastly(tried)
            before, after = self._shared(whole[0], ends[0], head + tried[0])
            if whole == [before + ids + after for ids in ends]:
                return [before + ids + after for ids in self._in_parts(tails, self._fastly)]
        whole_texts = [head + tail for tail in tails]
        return self._in_parts(whole_texts, lambda part: self._called(part, self._special))

    def plain(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """The ids of `texts` without special tokens."""
        first = self._called(texts[:1], special=False)  # leaves the library without truncation and padding
        rest = texts[1:]
        return first + (self._called(rest, special=False) if self._fast is None else self._fastly(rest))

    def _ends_a_piece(self, head: str, tail: str) -> bool:
        """Whether the tokenizer cuts between head and tail by rule, before it looks for tokens."""
        fast = self._fast
        if not head or fast is None or fast.pre_tokenizer is None:
            return False
        normalised = [head, head + tail]
        if fast.normalizer is not None:
            normalised = [fast.normalizer.normalize_str(text) for text in normalised]
        start, whole = normalised
        cuts = {end for _, (_, end) in fast.pre_tokenizer.pre_tokenize_str(whole)}
        return whole.startswith(start) and len(start) in cuts

    def _shared(
        self, whole: tuple[int, ...], end: tuple[int, ...], text: str
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens before and after the tokens `end` of the tail in the tokens of a whole text.

        Those of the head alone may differ: the blank lines that it ends with are cut as what follows asks.
        """
        (plain,) = self._called([text], special=False)
        n_after = next((n for n in range(len(whole)) if whole[: len(whole) - n][-len(plain) :] == plain), 0)
        return whole[: len(whole) - n_after - len(end)], whole[len(whole) - n_after :]

    def _called(self, texts: Sequence[str], special: bool) -> list[tuple[int, ...]]:
        """As the tokenizer gives them when it is called."""
        if not texts:
            return []
        return [tuple(ids) for ids in self._tokenizer(list(texts), add_special_tokens=special)["input_ids"]]

    def _fastly(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """The same without special tokens, and without what is not asked for (offsets, masks)."""
        assert self._fast is not None
        found = self._fast.encode_batch_fast(list(texts), add_special_tokens=False)
        return [tuple(one.ids) for one in found]

    def _in_parts(
        self, texts: Sequence[str], ids_of: Callable[[Sequence[str]], list[tuple[int, ...]]]
    ) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        one = self._number.setdefault
        for start in range(0, len(texts), _PART):
            part = texts[start : start + _PART]
            found += [tuple([one(index, index) for index in ids]) for ids in ids_of(part)]
            if self._on_part is not None:
                self._on_part(len(part))
        return found


class Spoken:
    """Says how many of many prompts are encoded, now and then; a callable for `encode`."""

    def __init__(self, n_total: int, say: Say) -> None:
        self._n_total, self._say = n_total, say
        self._n, self._last = 0, time.monotonic()

    def __call__(self, n: int) -> None:
        self._n += n
        if self._n_total >= _MANY and (self._n == self._n_total or time.monotonic() - self._last > _PAUSE_S):
            self._say(f"{self._n:,} of {self._n_total:,} prompts encoded")
            self._last = time.monotonic()
