"""How far what an engine gave is from what was expected, gathered over the requests of a check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from morfi.engine.protocol import Completion
from morfi.verification.lines import Line, Outcome
from morfi.verification.tolerance import Tolerance, distances

if TYPE_CHECKING:
    import torch

    from morfi.engine.steering import Captured


@dataclass(slots=True)
class Differences:
    """The worst differences so far, of residual streams and of tokens, each beside its tolerance."""

    tolerance: Tolerance
    stream: float = 0.0
    stream_tolerance: float = 0.0
    stream_where: str = ""
    n_rows: int = 0
    gap: float = 0.0
    gap_where: str = ""
    n_tokens: int = 0
    n_forks: int = 0  # tokens that are not the reference's likeliest

    def take_captured(
        self, found: Captured, expected: Sequence[torch.Tensor] | Mapping[int, torch.Tensor], where: str = ""
    ) -> None:
        """Compares what was captured with the rows of its positions in `expected`, a stream a layer."""
        import torch

        wanted = expected[found.layer][list(found.positions)]
        if not len(wanted):
            return
        self.n_rows += len(wanted)
        off = distances(found.values, wanted)
        worst = int(torch.argmax(off))
        allowed = self.tolerance.streams[found.layer]
        value = float(off[worst])
        if not self.stream_where or value / allowed > self.stream / self.stream_tolerance:
            self.stream, self.stream_tolerance = value, allowed
            self.stream_where = f"{where}after layer {found.layer} at position {found.positions[worst]}"

    def take_tokens(self, answer: Completion, logits: torch.Tensor, n_prompt: int, where: str) -> None:
        """Compares the tokens of an answer with the `logits` [n, n_vocab] of prompt and answer."""
        import torch

        rows = logits[n_prompt - 1 : n_prompt - 1 + len(answer.token_ids)]
        chosen = rows[torch.arange(len(rows)), torch.tensor(answer.token_ids)]
        gaps = ((rows.max(1).values - chosen) / rows.std(1)).nan_to_num(nan=float("inf"))
        self.n_tokens += len(rows)
        self.n_forks += int((gaps > 0).sum())
        worst = int(torch.argmax(gaps))
        if not self.gap_where or float(gaps[worst]) > self.gap:
            self.gap = float(gaps[worst])
            self.gap_where = f"{where}, token {worst}"

    @property
    def streams_hold(self) -> bool:
        """Whether every residual stream is within its tolerance."""
        return not self.n_rows or self.stream <= self.stream_tolerance

    @property
    def holds(self) -> bool:
        """Whether everything is within its tolerance."""
        return self.streams_hold and self.gap <= self.tolerance.gap

    def line(self, name: str, more: str = "") -> Line:
        """The line of a check that compared these; `more` is said of one that differs."""
        said, figures = [], dict[str, float]()
        if self.n_rows:
            where = "" if self.streams_hold else f" {self.stream_where}"
            said.append(
                f"{self.n_rows} streams by {self.stream:.2g}{where} (tolerance {self.stream_tolerance:.2g})"
            )
            figures |= {"stream": self.stream, "stream_tolerance": self.stream_tolerance}
            figures["streams"] = self.n_rows
        if self.n_tokens:
            where = "" if self.gap <= self.tolerance.gap else f" in {self.gap_where}"
            forks = f", {self.n_forks} not its likeliest" if self.n_forks else ""
            said.append(
                f"{self.n_tokens} tokens{forks} by {self.gap:.2g}{where} (tolerance {self.tolerance.gap:.2g})"
            )
            figures |= {"gap": self.gap, "gap_tolerance": self.tolerance.gap}
            figures |= {"tokens": self.n_tokens, "forks": self.n_forks}
        outcome = Outcome.HOLDS if self.holds else Outcome.DIFFERS
        return Line(name, outcome, "; ".join([*said, *([more] if more and not self.holds else [])]), figures)
