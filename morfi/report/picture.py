"""A picture: drawn once it is asked for, as an SVG to stand in a page, or as files."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.errors import InputError
from morfi.files import whole_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARGIN = 0.04  # of an axis, beyond its ends
NARROW = 3.7  # inches: as wide as a phone shows with letters of their size
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "morfi",  # the same names inside the SVG every time
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture; `draw` makes its figure, for a narrow screen where it is told so.

    The same picture gives the same bytes.
    """

    draw: Callable[[bool], Figure]

    def svg(self, *, narrow: bool = False) -> str:
        """The picture as an SVG document."""
        return self._saved("svg", narrow=narrow).decode("utf-8")

    def write(self, out: Path) -> tuple[Path, Path]:
        """Writes the picture to `out` with the endings .png and .svg, and returns the two paths.

        Raises InputError where there is no place to write it.
        """
        base = out.with_suffix("") if out.suffix in (".png", ".svg") else out
        png, svg = (base.with_name(f"{base.name}.{ending}") for ending in ("png", "svg"))
        drawn = {path: self._saved(path.suffix[1:]) for path in (png, svg)}
        for path, content in drawn.items():
            try:
                with whole_file(path) as file:
                    file.write(content)
            except OSError as error:
                raise InputError(
                    f"{path}: cannot be written: {error.strerror or error}; give another path"
                ) from error
        return png, svg

    def _saved(self, ending: str, *, narrow: bool = False) -> bytes:
        from matplotlib import style

        buffer = io.BytesIO()
        metadata = {"Software": None} if ending == "png" else {"Date": None, "Creator": None}
        # The user's own matplotlib settings must not change the bytes.
        with style.context(["default", _STYLE]):
            self.draw(narrow).savefig(buffer, format=ending, metadata=metadata)
        return buffer.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, drawn without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def name_it(figure: Figure, title: str, *, narrow: bool) -> None:
    """Puts the title over the figure; none over a narrow one, whose page names it."""
    if not narrow:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", parse_math=False)


def add_legend(figure: Figure, handles: list[Any], labels: list[str], *, narrow: bool) -> None:
    """Puts the legend beside the panels, or under them where there is no room."""
    place: dict[str, Any] = {"loc": "outside right upper"}
    if narrow:
        place = {"loc": "outside lower left", "ncols": 2, "columnspacing": 1.0}
    figure.legend(handles, labels, frameon=False, fontsize=8, **place)
