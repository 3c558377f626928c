"""`--match answer`: when two texts give the same answer, as people would say who read them.

Numbers keep their sign, point, fraction and comparison, and C++, C# and C, O+ and O- stay apart; SQuAD's
published rule drops all these signs. What only writing makes different goes: case, Unicode forms, invisible
characters, punctuation, and blanks and hyphens between letters.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from morfi.questions.folding import folded

_NO_ARTICLE = "\1"  # stands after an "a" that is none; no folded text has it
_PLAIN = re.compile("[A-Za-z ]*")
ARTICLES = frozenset(("a", "an", "the"))
_POWER = re.compile("(?<=\\d)[\u207a\u207b]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")  # 10⁶
_MINUS = re.compile(r"(?<![\w)])\u2212\s+(?=\d)")  # a minus sign, unlike a hyphen, is no bullet of a list

# Quotation marks and markup (**5**, _5_): signs stand beside them as they stand without.
_AROUND = re.compile("[\"\u201c-\u201f\u00ab\u00bb\u2039\u203a*_]|(?<!\\w)'|'(?!\\w)")

# Three digits to each group and one separator between all of them; points only where there are two or more.
_GROUPED = re.compile(
    r"(?<![\d.,'])[1-9]\d{0,2}(?:(?:,\d{3})+(?!,?\d)|(?:'\d{3})+(?!'?\d)|(?: \d{3})+(?!\d)"
    r"|(?:\.\d{3}){2,}(?![.]?\d))"
)
# 1.234,56 and 1,5: the last comma is the point, for no group of three follows it.
_DECIMAL_COMMA = re.compile(
    r"(?<![\d.,])(?:[1-9]\d{0,2}(?:\.\d{3})+,\d+|0,\d+|\d+,(?:\d{1,2}|\d{4,}))(?![.,]?\d)"
)
# The currency signs (category Sc).
_MONEY = (
    r"[$\u00a2-\u00a5\u058f\u060b\u07fe\u07ff\u09f2\u09f3\u09fb\u0af1\u0bf9\u0e3f\u17db\u20a0-\u20cf\ua838"
    r"\U00011fdd-\U00011fe0\U0001e2ff\U0001ecb0]"
)
_STEPS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<![^\s(\[])([^\W\d_]{1,2}) ([-+])(?=[\s.,;:!?)\]]*$)", r"\1\2"),  # O -
        (r"(?<!\w)(a|an|the)(?= ?[/,]| \+)", f"\\1{_NO_ARTICLE}"),
        ("<=|=<", "≤"),
        (">=|=>", "≥"),
        ("!=|<>", "≠"),
        ("&", " and "),
        (r"(?<=[^\W\d_]) ?\u266f", "#"),
        (r"\u221a[\s(]+", "\u221a"),
        (r"(?<=\de)\+(?=\d)", ""),  # 1e+6
        (r"(?<![\w.])\.(?=\d)", "0."),
        (rf"(?<![^\s(\[<>≤≥≠≈~±=])({_MONEY}) ?-(?=\d)", r"-\1"),
        (r"(?<=\d) ?([-/:^]) ?(?=\d)", r"\1"),
        (r"(?<=\d) ?\^ ?(?=-\d)", "^"),
        (r"(?<=[\u0370-\u03ff]) ?/ ?(?=\d)", "/"),
        (r"(?<![\w+)])\+ ?(?=\d)", ""),  # +5 is 5; O+ and 1+1 are left
        (rf"([<>≤≥≠≈~±]) +(?=-?{_MONEY}?\d)", r"\1"),
    )
)
# The signs that say something where they stand.
_SIGN = re.compile(
    rf"""(?P<kept>
      (?<=\d)[-.:/](?=\d) | (?<=\d)\^(?=-?\d)               # 2-3, 1.5, 10:30, 1/2, 10^6
    | (?<=\d\^)-(?=\d) | (?<=\de)-(?=\d)                    # 10^-6, 1.5e-3
    | (?<=[\u0370-\u03ff])/(?=\d)                            # π/2
    | (?<![^\s(\[<>≤≥≠≈~±=])-(?={_MONEY}?\d)                 # -5
    | (?<![^\s(\[<>≤≥≠≈~±=])-(?=[^\W\d_](?![^\W\d_]))       # -x
    | (?<=[^\W_])-(?=$|[\s.,;:!?)\]'"])                      # O-
    | (?<=[^\W_])\++ | (?<=\+)\+                             # O+, C++, 1+1
    | (?<=[^\W_])[\#\u266d]                                  # C#, B♭
    | [<>≤≥≠≈~±](?=-?{_MONEY}?\d)                            # >5
    | [%\u2030\u2031°\u221a{_NO_ARTICLE}] | {_MONEY}
    ) | [^\w\s] | _""",
    re.VERBOSE,
)
_BETWEEN_DIGITS = re.compile(r"(?<=\d)'(?=\d)")


@lru_cache(maxsize=65_536)
def answer_key(text: str) -> str:
    """The key that all ways of writing one answer share: texts give the same answer where it is equal.

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
    shown = " ".join(_AROUND.sub(" ", folded(shown)).split())
    shown = _GROUPED.sub(lambda found: re.sub(r"\D", "", found[0]), shown)
    shown = _DECIMAL_COMMA.sub(lambda found: found[0].replace(".", "").replace(",", "."), shown)
    for pattern, replacement in _STEPS:
        shown = pattern.sub(replacement, shown)
    shown = _SIGN.sub(_sign, _BETWEEN_DIGITS.sub(" ", shown))
    return _joined(_without_articles(shown.split())).replace(_NO_ARTICLE, "")


def _power(found: re.Match[str]) -> str:
    return f"^{unicodedata.normalize('NFKC', found[0]).replace('+', '')}"


def _sign(found: re.Match[str]) -> str:
    """The rest of a character that is no letter, digit or blank."""
    if found["kept"]:
        return found[0]
    if found[0] in "'.":
        return ""
    return found[0] if unicodedata.category(found[0])[0] in "LMN" else " "


def _without_articles(words: list[str]) -> list[str]:
    """`words` without a and an in front and "the" before the end; all of them where all are articles."""
    if all(word in ARTICLES for word in words):
        return words
    while words[0] in ARTICLES and len(words) > 1 and words[1] not in ("and", "or"):
        words = words[1:]
    return [word for word in words[:-1] if word != "the"] + words[-1:]


def _joined(words: list[str]) -> str:
    """The words without the blanks between them, but where a digit or a minus sign would gain a neighbour."""
    text = ""
    for word in words:
        apart = text and ((text[-1].isdigit() and word[0].isdigit()) or "-" in (text[-1], word[0]))
        text += f" {word}" if apart else word
    return text
