"""How far what an engine gave is from what was expected, gathered over the requests of a check."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from morfi.engine.protocol import Completion
from morfi.verification.lines import Line, Outcome
from morfi.verification.tolerance import Expected, distances, root_mean_square

if TYPE_CHECKING:
    import torch

    from morfi.engine.steering import Captured


@dataclass(slots=True)
class Worst:
    """The largest value so far in proportion to what was allowed, and where that was."""

    what: str
    value: float = 0.0
    allowed: float = math.inf
    where: str = ""
    n: int = 0  # values that it is the worst of

    def take(self, value: float, allowed: float, where: str, n: int) -> None:
        """Notes a value, which stands for `n`."""
        if not self.n or value / allowed > self.value / self.allowed:
            self.value, self.allowed, self.where = value, allowed, where
        self.n += n

    @property
    def holds(self) -> bool:
        """Whether it is allowed."""
        return self.value <= self.allowed

    @property
    def says(self) -> str:
        """The value in words, and where it was if it is not allowed."""
        where = "" if self.holds else f" {self.where}"
        return f"{self.n} {self.what} by {self.value:.2g}{where} (tolerance {self.allowed:.2g})"

    @property
    def figures(self) -> dict[str, float]:
        """The value in figures."""
        return {self.what: self.n, f"{self.what}_off": self.value, f"{self.what}_tolerance": self.allowed}


@dataclass(slots=True)
class Differences:
    """The worst differences so far, of residual streams and of tokens."""

    streams: Worst = field(default_factory=lambda: Worst("streams"))
    tokens: Worst = field(default_factory=lambda: Worst("tokens"))
    n_forks: int = 0  # tokens that are not the likeliest

    def take_captured(
        self, found: Captured, expected: Expected, where: str = "", rows: Sequence[torch.Tensor] = ()
    ) -> None:
        """Compares what was captured with the `rows` of its positions in a stream a layer.

        Those are what is expected after each layer, if no others are given.
        """
        wanted = (rows or expected.streams.after)[found.layer][list(found.positions)]
        if len(wanted):
            off = float(root_mean_square(distances(found.values, wanted)))
            self.take_stream(
                off, expected.allowed[found.layer], f"{where}after layer {found.layer}", len(wanted)
            )

    def take_stream(self, off: float, allowed: float, where: str, n: int) -> None:
        """Notes how far the streams at `n` positions are off."""
        self.streams.take(off, allowed, where, n)

    def take_tokens(self, answer: Completion, expected: Expected, n_prompt: int, where: str) -> None:
        """Compares the tokens of an answer with the logits that were expected for it."""
        import torch

        rows = expected.streams.logits[n_prompt - 1 : n_prompt - 1 + len(answer.token_ids)]
        chosen = rows[torch.arange(len(rows)), torch.tensor(answer.token_ids)]
        gaps = ((rows.max(1).values - chosen) / rows.std(1)).nan_to_num(nan=float("inf"))
        self.n_forks += int((gaps > 0).sum())
        worst = int(torch.argmax(gaps))
        self.tokens.take(float(gaps[worst]), expected.gap, f"in {where}, token {worst}", len(rows))

    @property
    def holds(self) -> bool:
        """Whether everything is within its tolerance."""
        return self.streams.holds and self.tokens.holds

    def line(self, name: str, more: str = "") -> Line:
        """The line of a check that compared these; `more` is said of one that differs."""
        compared = [one for one in (self.streams, self.tokens) if one.n]
        said = [one.says for one in compared]
        figures = {key: value for one in compared for key, value in one.figures.items()}
        if self.n_forks:
            said.append(f"{self.n_forks} of them not the likeliest")
            figures["forks"] = self.n_forks
        outcome = Outcome.HOLDS if self.holds else Outcome.DIFFERS
        if more and not self.holds:
            said.append(more)
        return Line(name, outcome, "; ".join(said), figures)
