"""The report of `morfi verify`: lines for a terminal, and one object to paste into a report of a bug."""

from __future__ import annotations

import contextlib
import getpass
import re
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from morfi import __version__
from morfi.runs.provenance import versions
from morfi.verification.lines import Line
from morfi.verification.verify import Verified
from morfi.words import counted

_WIDTHS = (17, 28)
_PATH = re.compile(r"""(?<![\w/.~])~?/(?!/)(?:[^\s/"',;()]+/)*[^\s/"',;():]+""")


def heading(subject: Verified) -> str:
    """What is verified, and how far it may be from transformers."""
    return (
        f"{subject.architecture}, {subject.n_layers} layers of {subject.d_model}, {subject.dtype}, "
        f"on {subject.device}\ntolerance: {subject.tolerance}\n"
    )


def line_text(line: Line) -> str:
    """The line as it is printed."""
    return f"{line.outcome:<{_WIDTHS[0]}}  {line.name:<{_WIDTHS[1]}}  {line.says}"


def summary(lines: Sequence[Line]) -> str:
    """How many checks ended in which way."""
    counts = Counter(str(line.outcome) for line in lines)
    return f"\n{counted(len(lines), 'line')}: {', '.join(f'{n} {outcome}' for outcome, n in counts.items())}"


def verification_object(
    subject: Verified, lines: Sequence[Line], fault: str | None, ckpt: str
) -> dict[str, Any]:
    """The report as one object, which names no path, user or host; `ckpt` is what the user gave."""
    found = {
        "holds": fault is None,
        "fault": fault,
        **asdict(subject),
        "versions": {"morfi": __version__, **versions()},
        "lines": [{**asdict(line), "figures": dict(line.figures)} for line in lines],
    }
    cleaned: dict[str, Any] = without(found, _private(ckpt))
    return cleaned


def _private(ckpt: str) -> list[str]:
    """Texts that say who and where, the longest first; paths as they are written in messages."""
    found = [str(Path.home()), str(Path.cwd()), socket.gethostname()]
    if Path(ckpt).expanduser().exists():
        found += [ckpt, str(Path(ckpt).expanduser().absolute())]
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        found.append(getpass.getuser())
    return sorted((one for one in found if len(one) > 1), key=len, reverse=True)


def without(value: Any, private: Sequence[str]) -> Any:
    """The value with the texts `private`, where they are whole words, and paths left out of every text."""
    if isinstance(value, Mapping):
        return {key: without(one, private) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without(one, private) for one in value]
    if not isinstance(value, str):
        return value
    text = str(value)
    for one in private:
        text = re.sub(rf"(?<!\w){re.escape(one)}(?!\w)", "NAME", text)
    return _PATH.sub("PATH", text)
