"""Corrections for how many latents were tested, counted by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa

from morfi.latents.significance import significance
from morfi.report.trends import significance_line
from morfi.store.records import ConditionRow


def condition(level: float, seed: int) -> ConditionRow:
    return ConditionRow("level", 0, level, seed, "3", 3, "0" * 64, 0.9, 5.0)


def test_those_that_fire_are_corrected_for_how_many_they_are() -> None:
    # Of five tested: 0.05 / 5 is Bonferroni's bound, and 0.05 k / 5 that of the k-th smallest.
    table = pa.table({"p_exact": [0.02, 0.009, 0.5, 0.03, 0.9, 1e-9], "firing": [0.1] * 5 + [0.001]})
    config = cast("Any", SimpleNamespace(min_firing=0.01))
    found = significance(table, config)
    assert (found.n_tested, found.bonferroni, found.benjamini_hochberg, found.least_p) == (5, 1, 3, 0.009)
    nothing = significance(table.slice(0, 0), config)
    assert (nothing.n_tested, nothing.bonferroni, nothing.benjamini_hochberg, nothing.least_p) == (
        0,
        0,
        0,
        None,
    )


def test_the_line_names_the_statistic_of_replicates() -> None:
    config = cast("Any", SimpleNamespace(min_firing=0))
    tested = significance(pa.table({"p_exact": [1e-6], "firing": [0.1]}), config)
    replicates = [condition(level, seed) for level in (0, 50, 100) for seed in (0, 1, 2)]
    assert significance_line(tested, replicates).startswith(
        "S is Jonckheere-Terpstra's over 3 trainings of each; by its p, the smallest of which is 1e-06, of 1 "
    )
    assert significance_line(tested, replicates[::3]).startswith("S is Mann-Kendall's; ")
