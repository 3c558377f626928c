"""Pictures inside a document: for wide and narrow screens, in the colours of its light and dark pages."""

from __future__ import annotations

import colorsys
import re
from dataclasses import dataclass

from morfi.report.document.html import text
from morfi.report.picture import Picture

_IDS = re.compile(r'\bid="([^"]+)"')
_USES = re.compile(r'(?<=["(])#([^")]+)(?=[")])')
_COLOURS = re.compile(r"(?<=: )#([0-9a-f]{6})\b")
_NAMED = re.compile(r"var\(--c([0-9a-f]{6})\)")
_HEADER = re.compile(r"^.*?(?=<svg)", re.DOTALL)  # the XML declaration and document type
_SIZE = re.compile(r'<svg[^>]*viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>', re.DOTALL)
_META = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
_SCALE = {"wide": 1.35, "narrow": 1.6}  # the most that a drawing is enlarged
_CONTRAST = 3.0  # of what carries meaning and is no text, against the page (WCAG 1.4.11)
_PAPER = {"light": (1.0, 1.0, 1.0), "dark": (0.086, 0.086, 0.102)}  # --paper of report.css
_STEP = 0.02  # of lightness


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture with its name, its caption, and what it shows in words."""

    picture: Picture
    name: str
    caption: str
    said: str


def drawing(figure: Figure | None) -> str:
    """The HTML of a figure, whose ids begin with its name; nothing where there is none."""
    if figure is None:
        return ""
    drawings = "".join(
        _inside(figure.picture.svg(narrow=kind == "narrow"), f"{figure.name}-{kind}", kind, figure.said)
        for kind in _SCALE
    )
    return f"<figure>{drawings}<figcaption>{text(figure.caption)}</figcaption></figure>"


def _inside(svg: str, name: str, kind: str, said: str) -> str:
    """The SVG without what only a file needs, its colours left to the page."""
    size = _SIZE.search(svg)
    assert size is not None
    body = _META.sub("", svg[size.end() :])
    body = _IDS.sub(rf'id="{name}-\1"', body)
    body = _USES.sub(rf"#{name}-\1", body)
    body = _COLOURS.sub(lambda found: _variable(found[1]), body)
    width, height = (float(one) for one in size.groups())
    most = f"max-width: {width * _SCALE[kind]:.0f}px"
    return (
        f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" style="{most}" '
        f'role="img" aria-label="{text(said)}">{body.strip()}'
    )


def _variable(colour: str) -> str:
    return {"000000": "currentColor", "ffffff": "var(--paper)"}.get(colour, f"var(--c{colour})")


def colours_of(body: str) -> str:
    """The style sheet of the colours that the pictures in `body` name, on light and on dark pages."""
    names = sorted(set(_NAMED.findall(body)))
    light, dark = ("".join(f"--c{name}: {_on(name, page)}; " for name in names) for page in ("light", "dark"))
    return (
        f":root {{ {light}}}\n@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}\n"
        if names
        else ""
    )


def _on(colour: str, page: str) -> str:
    """The colour as it can be told from the page: greys are turned round, others lighter or darker."""
    red, green, blue = (int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    if saturation < 0.05:
        return f"#{colour}" if page == "light" else _hex((1 - 0.85 * lightness,) * 3)
    step = _STEP if page == "dark" else -_STEP
    made = red, green, blue
    while _contrast(made, _PAPER[page]) < _CONTRAST:
        lightness += step
        made = colorsys.hls_to_rgb(hue, lightness, saturation)
    return _hex(made)


def _hex(colour: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * one):02x}" for one in colour)


def _contrast(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    """The contrast ratio of two colours (WCAG 2)."""
    bright, dim = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(colour: tuple[float, float, float]) -> float:
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in colour]
    return sum(weight * one for weight, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
