"""`--match answer`: when two texts give the same answer, as people would say who read them.

Numbers keep their sign, point, fraction and comparison, and C++, C# and C, O+ and O- stay apart; SQuAD's
published rule drops all these signs. What only writing makes different goes: case, Unicode forms, invisible
characters, punctuation, and blanks and hyphens between letters.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from morfi.folding import folded

_PLAIN = re.compile("[A-Za-z ]*")
_ARTICLES = frozenset(("a", "an", "the"))
_POWER = re.compile("(?<=\\d)[\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")  # 10⁶
_MINUS = re.compile(r"(?<![\w)])\u2212\s+(?=\d)")  # a minus sign, unlike a hyphen, is no bullet of a list

# Three digits to each group and one separator between all of them; points only where there are two or more.
_GROUPED = re.compile(
    r"(?<![\d.,'])[1-9]\d{0,2}(?:(?:,\d{3})+(?!,?\d)|(?:'\d{3})+(?!'?\d)|(?: \d{3})+(?!\d)"
    r"|(?:\.\d{3}){2,}(?![.]?\d))"
)
# 1.234,56 and 1,5: the last comma is the point, for no group of three follows it.
_DECIMAL_COMMA = re.compile(
    r"(?<![\d.,])(?:[1-9]\d{0,2}(?:\.\d{3})+,\d+|0,\d+|\d+,(?:\d{1,2}|\d{4,}))(?![.,]?\d)"
)
_STEPS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        ("<=|=<", "≤"),
        (">=|=>", "≥"),
        ("!=|<>", "≠"),
        ("&", " and "),
        (r"(?<![\w.])\.(?=\d)", "0."),
        (r"(?<=\d) ?([-/:^]) ?(?=\d)", r"\1"),
        (r"(?<![\w+)])\+ ?(?=\d)", ""),  # +5 is 5; O+ and 1+1 are left
        (r"([<>≤≥≠≈~±]) +(?=-?[$€£¥]?\d)", r"\1"),
    )
)
# The signs that say something where they stand.
_SIGN = re.compile(
    r"""(?P<kept>
      (?<=\d)[-.:/^](?=\d)                                  # 2-3, 1.5, 10:30, 1/2, 10^6
    | (?<![^\s(\[<>≤≥≠≈~±=])-(?=[$€£¥]?\d)                  # -5
    | (?<=[^\W_])-(?=$|[\s.,;:!?)\]'"])                     # O-
    | (?<=[^\W_])\++ | (?<=\+)\+                            # O+, C++, 1+1
    | (?<=[^\W_])\#                                         # C#
    | [<>≤≥≠≈~±](?=-?[$€£¥]?\d)                             # >5
    | [%°$€£¥₹₽₩]
    ) | [^\w\s] | _""",
    re.VERBOSE,
)
_BETWEEN_DIGITS = re.compile(r"(?<=\d)'(?=\d)")


@lru_cache(maxsize=65_536)
def answer_key(text: str) -> str:
    """What all ways of writing one answer share; two texts give the same answer where their keys are equal.

    Empty for a text of which nothing is left. A key is its own key.
    """
    key = _key(text)
    for _ in range(8):  # joining words may put signs side by side that say something there
        if (again := _key(key)) == key:
            break
        key = again
    return key


def _key(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return "".join(_without_articles(text.lower().split()))
    shown = _MINUS.sub("-", _POWER.sub(_power, text))
    shown = " ".join(folded(shown).split())
    shown = _GROUPED.sub(lambda found: re.sub(r"\D", "", found[0]), shown)
    shown = _DECIMAL_COMMA.sub(lambda found: found[0].replace(".", "").replace(",", "."), shown)
    for pattern, replacement in _STEPS:
        shown = pattern.sub(replacement, shown)
    shown = _SIGN.sub(_sign, _BETWEEN_DIGITS.sub(" ", shown))
    return _joined(_without_articles(shown.split()))


def _power(found: re.Match[str]) -> str:
    return f"^{unicodedata.normalize('NFKC', found[0]).replace('+', '')}"


def _sign(found: re.Match[str]) -> str:
    """What stays of a character that is no letter, digit or blank."""
    if found["kept"]:
        return found[0]
    if found[0] in "'.":
        return ""
    return found[0] if unicodedata.category(found[0])[0] in "LMN" else " "


def _without_articles(words: list[str]) -> list[str]:
    """`words` without a and an in front and "the" before the end; all of them where all are articles."""
    if all(word in _ARTICLES for word in words):
        return words
    while words[0] in _ARTICLES and len(words) > 1:
        words = words[1:]
    return [word for word in words[:-1] if word != "the"] + words[-1:]


def _joined(words: list[str]) -> str:
    """The words without the blanks between them, but where a digit or a minus sign would gain a neighbour."""
    text = ""
    for word in words:
        apart = text and ((text[-1].isdigit() and word[0].isdigit()) or "-" in (text[-1], word[0]))
        text += f" {word}" if apart else word
    return text
