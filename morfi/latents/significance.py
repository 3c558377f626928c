"""How many latents pass a correction for how many were tested: Bonferroni's, Benjamini and Hochberg's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from morfi.latents.find import FindRun

if TYPE_CHECKING:
    import pyarrow as pa

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Significance:
    """How many of `n_tested` latents have a p that passes each correction at `level`.

    `bonferroni`: that any of them is false has a probability of at most `level`. `benjamini_hochberg`: that
    is the expected share of false ones. `least_p` is the smallest p, None where nothing was tested.
    """

    level: float
    n_tested: int
    bonferroni: int
    benjamini_hochberg: int
    least_p: float | None


def significance(latents: pa.Table, config: FindRun) -> Significance:
    """The corrections over all `latents` of a find run, by the p of S along its first axis.

    Tested are those that fire on enough questions.
    """
    from scipy.stats import false_discovery_control

    p = latents["p_exact"].to_numpy()[latents["firing"].to_numpy() >= config.min_firing]
    n = len(p)
    return Significance(
        level=LEVEL,
        n_tested=n,
        bonferroni=int((p * n <= LEVEL).sum()),
        benjamini_hochberg=int((false_discovery_control(p) <= LEVEL).sum()) if n else 0,
        least_p=float(p.min()) if n else None,
    )
