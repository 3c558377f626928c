"""Exports that are folders, against the code of those who read them where it is installed.

pip install --no-deps --ignore-requires-python every-eval-ever==0.3.0 lm-eval==0.4.13
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import duckdb
import pandas
import pytest
from pyarrow import parquet
from run_record import START, run_record

from morfi.errors import InputError
from morfi.questions.question import Question
from morfi.runs import answered, folders
from morfi.runs.folders import FOLDERS, export_folder
from morfi.store import Store
from morfi.store.records import AttemptRecord, CompletionRow, JudgedAnswer, SweepRow

CKPT = "/home/somebody/models/my model"
TEXTS = ["Paris", " a\u2028b", "", '"', "a\nb", "é🗼"]
ATTEMPT = AttemptRecord(START, "morfi eval", 1, "a-host", "0.1.0", None, {"vllm": "0.32.0"}, "CPU", {})


def write_run(store: Store, run_id: str, texts: list[str], **changes: Any) -> None:
    """A run with a question for each text, in turn of P17 and of P36; the first and every third are right."""
    questions = [
        Question(f"q{i}", ("P17", "P36")[i % 2], f"place {i}", f"Where is {text}?", (text or "x", "other"))
        for i, text in enumerate(texts)
    ]
    config = {"match": "squad", "max_tokens": 16, "shots": 4}
    record = run_record(run_id, data_sha256=run_id, n_planned=len(texts), ckpt=CKPT, config=config)
    store.begin_run(replace(record, **changes), {"test": questions})
    store.begin_attempt(run_id, ATTEMPT)
    store.write_completions(
        [
            CompletionRow(run_id, f"q{i}", 0, f"Q: {text}", judged(text, correct=i % 3 == 0))
            for i, text in enumerate(texts)
        ]
    )


def judged(text: str, *, correct: bool) -> JudgedAnswer:
    return JudgedAnswer(text, text, "stop", correct, True, False, 9, 8, 2, 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("store") / "morfi.duckdb")
    with store.together():
        write_run(store, "run-a", TEXTS)
        write_run(store, "run-b", ["other"])
        store.begin_run(run_record("run-sweep", kind="sweep", data_sha256="run-a"), {})
        store.add("run-sweep", [SweepRow(0, None, None, None, None, "a" * 64, 0.5, 1, "run-b")])
        write_run(store, "run-unfinished", ["a"], n_planned=2)
        write_run(store, "run-served", TEXTS, config={"match": "contains", "endpoint": "http://a"})
    return store


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("fmt", ["eee", "lm-eval"])
def test_a_folder_names_no_place_of_this_machine_and_is_the_same_again(
    store: Store, tmp_path: Path, fmt: str
) -> None:
    assert export_folder(store, "run-a", fmt, tmp_path / "out") == "run-a"
    export_folder(store, "run-a", fmt, tmp_path / "again")
    found = files_in(tmp_path / "out")
    assert found == files_in(tmp_path / "again")
    assert not any(b"somebody" in content or b"a-host" in content for content in found.values())


@pytest.mark.parametrize("fmt", FOLDERS)
def test_what_is_there_is_not_replaced_and_a_failure_leaves_nothing(
    store: Store, tmp_path: Path, fmt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    for out, said in (
        (tmp_path / "mine", "is there already"),
        (tmp_path / "absent" / "out", "does not exist"),
        (None, "give --out FOLDER"),
    ):
        with pytest.raises(InputError, match=said):
            export_folder(store, "run-a", fmt, out)

    def full(store: Store, run_id: str, folder: Path) -> str:
        FOLDERS[fmt](store, run_id, folder)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "FOLDERS", {fmt: full})
    with pytest.raises(InputError, match="No space left"):
        export_folder(store, "run-a", fmt, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


def test_a_run_that_has_not_ended_is_no_result(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run-unfinished has 1 of 2 answers"):
        export_folder(store, "run-unfinished", "eee", tmp_path / "out")


def test_names_are_portable_and_those_of_the_hub_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "here").mkdir(parents=True)
    names = {
        "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "org/model-7B": "org/model-7B",
        "org/here": "local/here",
        "/a/b: c/": "local/b_c",
        "/a/data": "local/data_",
        "/": "local/unnamed",
    }
    assert {ckpt: answered.public_id(ckpt) for ckpt in names} == names


def test_a_checkpoint_of_a_series_is_none_of_the_hub(store: Store) -> None:
    run = answered.read_answered(store, "run-a")
    record = replace(run.record, kind="sweep-eval", ckpt="level-050/epoch-03", base="org/model")
    assert replace(run, record=record).model_id == "local/level-050_epoch-03"
    assert replace(run, record=replace(record, ckpt="org/model")).model_id == "org/model"


def test_eee_holds_each_relation_and_every_answer(store: Store, tmp_path: Path) -> None:
    export_folder(store, "run-a", "eee", tmp_path / "out")
    place = tmp_path / "out" / "data" / "world-facts" / "local" / "my_model"
    (results_at,) = place.glob("*[0-9a-f].json")
    results = json.loads(results_at.read_text())
    scores = {one["evaluation_name"]: one["score_details"] for one in results["evaluation_results"]}
    for row in store.accuracies("run-a")[:-1]:
        found = scores.pop(f"world-facts/{row.relation}")
        interval = found["uncertainty"]["confidence_interval"]
        assert (found["score"], interval["lower"], interval["upper"]) == (
            row.accuracy,
            row.ci_low,
            row.ci_high,
        )
        assert found["uncertainty"]["num_samples"] == row.n
    assert not scores
    detailed = results["detailed_evaluation_results"]
    content = (tmp_path / "out" / detailed["file_path"]).read_bytes()
    assert detailed["checksum"] == hashlib.sha256(content).hexdigest()
    lines = [json.loads(line) for line in content.decode().splitlines()]
    assert [line["output"]["raw"] for line in lines] == [
        [row["text"]] for row in store.samples("run-a").to_pylist()
    ]
    ids = {one["evaluation_result_id"] for one in results["evaluation_results"]}
    assert {line["evaluation_result_id"] for line in lines} == ids


@pytest.mark.long
def test_the_validator_of_every_eval_ever_takes_a_run(store: Store, tmp_path: Path) -> None:
    core = pytest.importorskip("every_eval_ever.validator.validation_core")
    for run_id in ("run-a", "run-b", "run-served"):
        out = tmp_path / run_id
        export_folder(store, run_id, "eee", out)
        names = set(files_in(out))
        assert len(names) == 2
        for name in names:
            report = core.validate_file(
                out / name,
                repo_path=name,
                available_files=names,
                read_repo_file=lambda path, out=out: (out / path).read_text(),
                run_semantic_checks=True,
            )
            assert (report.valid, report.errors, report.warnings) == (True, [], [])


def test_lm_eval_hashes_and_file_names_are_those_of_its_own_code(store: Store, tmp_path: Path) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    export_folder(store, "run-a", "lm-eval", tmp_path / "out")
    names = [f"/{name}" for name in files_in(tmp_path / "out")]
    (results_at,) = utils.get_results_filenames(names)
    results = json.loads((tmp_path / "out" / results_at[1:]).read_text())
    samples_at = utils.get_sample_results_filenames(names)
    assert {utils.get_file_task_name(Path(name).name) for name in samples_at} == set(results["results"])
    assert len(names) == 3
    assert utils.sanitize_model_name(results["model_name"]) == Path(results_at).parent.name
    for name in samples_at:
        samples = [json.loads(line) for line in (tmp_path / "out" / name[1:]).read_text().splitlines()]
        task = utils.get_file_task_name(Path(name).name)
        scores = [sample["exact_match"] for sample in samples]
        found = results["results"][task]
        assert found["exact_match,none"] == pytest.approx(fmean(scores))
        assert found["exact_match_stderr,none"] == pytest.approx(stdev(scores) / len(scores) ** 0.5)
        for sample in samples:
            doc = json.dumps(sample["doc"], indent=2, ensure_ascii=False)
            assert sample["doc_hash"] == utils.hash_string(doc)
            assert sample["prompt_hash"] == utils.hash_string(sample["arguments"]["gen_args_0"]["arg_0"])
        hashes = "".join(one["doc_hash"] + one["prompt_hash"] + one["target_hash"] for one in samples)
        assert results["task_hashes"][task] == utils.hash_string(hashes)


@pytest.mark.parametrize("run_id", ["run-a", "run-b", "run-served"])
def test_every_eval_ever_reads_an_lm_eval_folder_as_the_run(
    store: Store, tmp_path: Path, run_id: str
) -> None:
    reader = pytest.importorskip("every_eval_ever.converters.lm_eval.adapter")
    export_folder(store, run_id, "lm-eval", tmp_path / "out")
    (results_at,) = (tmp_path / "out").rglob("results_*.json")
    logs = reader.LMEvalAdapter().transform_from_file(results_at, {"eval_library_version": "0.4.13"})
    found = {
        log.evaluation_results[0].evaluation_name: log.evaluation_results[0].score_details for log in logs
    }
    expected = {f"world_facts_{one.relation}": one for one in store.accuracies(run_id) if one.relation}
    assert {name: one.score for name, one in found.items()} == {
        name: one.accuracy for name, one in expected.items()
    }
    assert {name: one.uncertainty.num_samples for name, one in found.items()} == {
        name: one.n for name, one in expected.items()
    }


@pytest.mark.parametrize(("run_id", "runs"), [("run-a", ["run-a"]), ("run-sweep", ["run-sweep", "run-b"])])
def test_tables_hold_all_rows_of_a_run_and_no_others(
    store: Store, tmp_path: Path, run_id: str, runs: list[str]
) -> None:
    export_folder(store, run_id, "tables", tmp_path / "out")
    about = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (about["run_id"], about["runs"]) == (run_id, runs)
    tables = {path.stem: parquet.read_table(path) for path in (tmp_path / "out").glob("*.parquet")}
    assert {name: table.num_rows for name, table in tables.items()} == about["n_rows"]
    wanted = {"asked", "attempt", "completion", "question", "run"}
    assert set(tables) == (wanted | {"sweep_checkpoint"} if run_id == "run-sweep" else wanted)
    listed = ", ".join(f"'{one}'" for one in runs)
    for name, table in tables.items():
        column = "data_sha256" if name == "question" else "run_id"
        expected = store.query(f"FROM {name} WHERE {column} IN ({listed}) ORDER BY ALL").to_pylist()
        found = table.to_pylist()
        assert [{key: as_stored(value) for key, value in row.items()} for row in found] == expected


def as_stored(value: Any) -> Any:
    """A value of a Parquet file as the store has it: with UTC unsaid."""
    return value.replace(tzinfo=None) if isinstance(value, datetime) else value


@pytest.mark.long
def test_pandas_and_duckdb_read_the_types_of_tables(store: Store, tmp_path: Path) -> None:
    export_folder(store, "run-a", "tables", tmp_path / "out")
    run, question = tmp_path / "out" / "run.parquet", tmp_path / "out" / "question.parquet"
    assert pandas.read_parquet(run)["created_at"][0] == START
    assert list(pandas.read_parquet(question)["answers"][0]) == ["Paris", "other"]
    with duckdb.connect() as connection:
        columns = "SELECT column_name, column_type FROM (DESCRIBE FROM read_parquet(?))"
        types = dict(connection.execute(columns, [str(run)]).fetchall())
        answers = connection.execute("SELECT answers FROM read_parquet(?)", [str(question)]).fetchall()
    assert types["created_at"] == "TIMESTAMP WITH TIME ZONE"
    assert (types["bos"], types["seed"], types["config"]) == ("BOOLEAN", "BIGINT", "VARCHAR")
    assert (["Paris", "other"],) in answers
