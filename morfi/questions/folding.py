"""Texts as people read them: without what nobody sees, and one form for what Unicode writes in several."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right

# Their category is Cf, and yet they are seen: signs before a number (Prepended_Concatenation_Mark).
_SEEN = frozenset((*range(0x0600, 0x0606), 0x06DD, 0x070F, 0x0890, 0x0891, 0x08E2, 0x110BD, 0x110CD))
# Default_Ignorable_Code_Point beyond the category Cf: joiners, fillers of Hangul, variation selectors.
_UNSEEN = frozenset(
    (
        *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x180F, 0x3164, 0xFFA0),
        *range(0xFE00, 0xFE10),
        *range(0xE0100, 0xE01F0),
    )
)
_FORMS = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u02b9\u02bb\u02bc\u02bd\u02be\u02bf\u02c8\u055a\u05f3", "'"),
    **dict.fromkeys("\u00b4\u0060\u02ca\u02cb\u1fbd\u1fbf\u1fef\u1ffd\u2032\u2035\ua78c\uff07\uff40", "'"),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"),
    **dict.fromkeys("\u2044\u2215\u29f8", "/"),
    **dict.fromkeys("\u2122\u2120\u00ae\u00a9", ""),  # trade, service and registered marks, copyright
    "\u0130": "i",  # of Turkish; lower() makes two characters of it
    "\u0131": "i",
    "\u066a": "%",
    "\u066b": ".",  # Arabic's decimal point and thousands separator
    "\u066c": ",",
    "\u2236": ":",
}
_BEFORE_FRACTION = re.compile("(?<=\\d)(?=[\u00bc-\u00be\u2150-\u215f\u2189])")  # 1½ is 1 1/2, never 11/2

# First and last code points of scripts that put no blanks between words.
_UNSPACED = (
    (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19DF),  # Tai Le, New Tai Lue
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x3005, 0x3007),
    (0x3041, 0x312F),  # Hiragana, Katakana, Bopomofo
    (0x31A0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x1B000, 0x1B16F),
    (0x20000, 0x3FFFF),
)
_UNSPACED_STARTS = [first for first, _ in _UNSPACED]


class _Folds(dict[int, str | int]):
    """A table for `str.translate`, filled with each character as it is met."""

    def __missing__(self, code: int) -> str | int:
        character = chr(code)
        if character in _FORMS:
            self[code] = _FORMS[character]
        elif not is_seen(character):
            self[code] = ""
        elif code > 127 and unicodedata.category(character) == "Nd":
            self[code] = str(unicodedata.decimal(character))
        else:
            self[code] = code
        return self[code]


_FOLDS = _Folds()


def is_seen(character: str) -> bool:
    """Whether a reader can see the character, or the blank that it makes."""
    code = ord(character)
    if code in _UNSEEN:
        return False
    category = unicodedata.category(character)
    return not (category == "Cf" and code not in _SEEN) and not (category == "Cc" and not character.isspace())


def holds_text(text: str) -> bool:
    """Whether anything but blanks is to be seen in `text`."""
    if text.isascii() and text.isprintable():
        return bool(text.strip())
    return any(not character.isspace() and is_seen(character) for character in text)


def is_unspaced(character: str) -> bool:
    """Whether the character's script puts no blanks between words (Chinese, Japanese, Thai, ...)."""
    place = bisect_right(_UNSPACED_STARTS, ord(character)) - 1
    return place >= 0 and ord(character) <= _UNSPACED[place][1]


def folded(text: str) -> str:
    """`text` without case, invisible characters and marks of ownership, in one form of each character.

    That is Unicode's NFKC with full case folding (so ß is ss), and beside it: letters that serve as
    apostrophes and primes are "'", hyphens, en dashes and the minus sign "-", decimal digits of all scripts
    ASCII, the dotted and the dotless i of Turkish "i". Punctuation and blanks stay.
    """
    if text.isascii() and text.isprintable() and "`" not in text:
        return text.lower()
    shown = _BEFORE_FRACTION.sub(" ", text.translate(_FOLDS))
    # Case folding may undo the composition, and either may give a character that has a form.
    for _ in range(2):
        shown = unicodedata.normalize("NFKC", shown).translate(_FOLDS).casefold().replace("i\u0307", "i")
    return unicodedata.normalize("NFKC", shown).translate(_FOLDS)
