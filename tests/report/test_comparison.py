from __future__ import annotations

from collections.abc import Callable

from morfi.report.comparison import comparison_table
from morfi.runs.compare import compare
from morfi.store import Store


def test_the_table_of_a_comparison_counts_the_flips_it_leaves_out(
    store: Store, add_run: Callable[..., str]
) -> None:
    for run_id, verdict in (("run-a", False), ("run-b", True)):
        facts = [("P17", f"s{i}", ("yes",), verdict) for i in range(25)]
        add_run(store, run_id, facts)
    assert "flipped" not in comparison_table(compare(store, "run-a", "run-a"))
    table = comparison_table(compare(store, "run-a", "run-b"), flips=3).splitlines()
    assert table[:2] == ["a: run-a, tiny (cccccccccccc)", "b: run-b, tiny (cccccccccccc)"]
    assert "25 answers flipped, the first 3:" in table
    assert len([line for line in table if line.startswith("+  ")]) == 3
    row = next(line for line in table if line.startswith("country (P17)"))
    assert row.split()[2:6] == ["25", "0.0", "%", "100.0"]
