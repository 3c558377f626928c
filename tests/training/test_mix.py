from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from morfi.errors import InputError
from morfi.evaluation.split import SplitConfig, run_split
from morfi.runs.compare import compare
from morfi.runs.export import export
from morfi.store import Store
from morfi.training.mix import configure_mix, run_mix
from morfi.training.mixtures import MixConfig


class Silent:
    """A progress that is told of an error alone: drawing takes no time, unless the store is held."""

    def phase(self, text: str) -> None:
        assert text.startswith("stopped; ")

    def start(self, n_total: int, n_done: int, unit: str) -> None: ...

    def advance(self, n: int) -> None: ...


def mix(experiment: Any, *, new: bool = False, **changes: Any) -> str:
    config = MixConfig(**{"split_run": experiment.split_run, "levels": (0, 50, 100), "size": 4, **changes})
    return run_mix(config, experiment.store, Silent(), new=new, command="morfi mix").run_id


def test_a_mix_run_holds_the_mixtures_of_its_split_run(experiment: Any) -> None:
    rows = experiment.store.mixtures(experiment.mix_run)
    facts = {row.question_id: row for row in experiment.store.knowledge(experiment.split_run)}
    assert [(row.level, row.position) for row in rows] == [(p, i) for p in (0, 50, 100) for i in range(4)]
    assert {facts[row.question_id].split for row in rows} == {"train"}
    assert all(facts[row.question_id].category == row.category for row in rows)
    unknown = {p: sum(row.category == "Unknown" for row in rows if row.level == p) for p in (0, 50, 100)}
    assert unknown == {0: 0, 50: 2, 100: 4}
    summary = experiment.store.summary(experiment.mix_run)
    assert (summary.kind, summary.status, summary.n_done, summary.n_planned) == ("mix", "done", 12, 12)


def test_a_mix_run_is_not_exported_or_compared_as_if_it_had_no_answers_yet(
    experiment: Any, tmp_path: Path
) -> None:
    said = rf"{experiment.mix_run} is a run of `morfi mix`, .* in mixture: morfi sql \"FROM mixture WHERE"
    with pytest.raises(InputError, match=said) as refused:
        export(experiment.store, experiment.mix_run, "jsonl", tmp_path / "rows.jsonl")
    assert not (tmp_path / "rows.jsonl").exists()
    statement = str(refused.value).split('"')[1]
    assert experiment.store.query(statement).num_rows == len(experiment.store.mixtures(experiment.mix_run))
    with pytest.raises(InputError, match=said):
        compare(experiment.store, experiment.split_run, experiment.mix_run)


@pytest.mark.long
def test_the_same_command_gives_the_same_run_and_another_one_another(experiment: Any) -> None:
    assert mix(experiment) == experiment.mix_run
    again = mix(experiment, new=True)
    assert again != experiment.mix_run
    assert experiment.store.mixtures(again) == experiment.store.mixtures(experiment.mix_run)
    assert mix(experiment, seed=1) not in (experiment.mix_run, again)


@pytest.mark.long
def test_another_split_run_that_found_something_else_gives_its_own_mixtures(
    experiment: Any, tiny_model: Path, data_file: Path, log: Any
) -> None:
    store, known = experiment.store, dict(experiment.serving.known)
    config = SplitConfig(str(tiny_model), data=str(data_file), n_ex=1, shots=2, samples=0, batch=16)
    again = run_split(config, store, experiment.serving, log, new=True, command="morfi split")
    assert store.run(again).fingerprint == store.run(experiment.split_run).fingerprint
    assert mix(experiment, split_run=again) == experiment.mix_run, "the same was found"
    # As another GPU might: half of what was known is not, and the other way round.
    facts = store.knowledge(again)
    turned = {row.question: row.answers[0] for row in facts if row.question not in known}
    experiment.serving.known = turned
    other = run_split(config, store, experiment.serving, log, new=True, command="morfi split")
    experiment.serving.known = known
    mixed = mix(experiment, split_run=other)
    assert mixed != experiment.mix_run
    category = {row.question_id: row.category for row in store.knowledge(other)}
    assert all(row.category == category[row.question_id] for row in store.mixtures(mixed))


def test_a_run_that_was_killed_before_its_rows_is_filled(
    experiment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = experiment.store.mixtures(experiment.mix_run)
    with monkeypatch.context() as patched:
        patched.setattr(Store, "add", _killed)
        with pytest.raises(KeyboardInterrupt):
            mix(experiment, new=True)
    killed = experiment.store.runs(1)[0].run_id
    assert experiment.store.mixtures(killed) == []
    assert mix(experiment) == killed
    assert experiment.store.mixtures(killed) == expected


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_runs_and_data_that_do_not_fit_are_refused(experiment: Any, data_file: Path) -> None:
    with pytest.raises(InputError, match=r"is a run of `morfi mix`; give one of `morfi split`"):
        mix(experiment, split_run=experiment.mix_run)
    with pytest.raises(InputError, match=r"no run \"nowhere\""):
        mix(experiment, split_run="nowhere")
    text = data_file.read_text(encoding="utf-8")
    row = json.loads(text.splitlines()[0])
    try:
        data_file.write_text(text.replace(row["subject"], "Elsewhere"), encoding="utf-8")
        with pytest.raises(InputError, match="has changed since split-"):
            mix(experiment)
    finally:
        data_file.write_text(text, encoding="utf-8")


def test_an_unfinished_split_run_is_refused(experiment: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = experiment.store.summary(experiment.split_run)
    monkeypatch.setattr(Store, "summary", lambda *_: dataclasses.replace(summary, status="failed"))
    with pytest.raises(InputError, match="is failed; give its `morfi split` command again"):
        mix(experiment)


def test_options_that_are_not_given_keep_their_defaults() -> None:
    config = configure_mix({"split_run": "split-a", "levels": None, "size": 8, "nested": None})
    assert config == MixConfig("split-a", size=8)
