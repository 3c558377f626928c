"""The store of everything measured: one DuckDB file of facts that are only ever added."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from morfi.errors import InputError, MorfiError
from morfi.questions.question import Question
from morfi.statistics import wilson_interval
from morfi.store import lease
from morfi.store.counts import AnswerCounts, count_answers
from morfi.store.file import exists
from morfi.store.query import Rows, answered, streamed
from morfi.store.records import (
    AttemptEnd,
    AttemptRecord,
    BaselineRow,
    CapturedRow,
    CheckpointRow,
    CompletionRow,
    ConditionRow,
    DirectionRow,
    EpochRow,
    FalseDiscoveriesRow,
    KnowledgeRow,
    MixtureRow,
    RelationAccuracy,
    RunKind,
    RunRecord,
    RunSummary,
    SteeredRow,
    SweepAccuracy,
    SweepRow,
    TrendSummaryRow,
)
from morfi.store.rows import columns_of, insert_columns, read_records
from morfi.store.run_ids import resolve
from morfi.store.sweep_accuracies import sweep_accuracies
from morfi.store.work import Work
from morfi.terminal import Say

if TYPE_CHECKING:
    import pyarrow as pa

# The rows of runs that have no completions of their own; those of a sweep are in the runs that it names.
_ROWS_IN: Mapping[str, str] = {
    RunKind.MIX: "mixture",
    RunKind.TRAIN: "checkpoint",
    RunKind.SWEEP: "sweep_checkpoint",
    RunKind.CAPTURE: "captured_checkpoint",
    RunKind.FIND: "latent_trend",
    RunKind.STEER: "steered_answer",
}
# Rows that a run adds beside its completions.
Made = (
    MixtureRow
    | BaselineRow
    | EpochRow
    | CheckpointRow
    | SweepRow
    | CapturedRow
    | ConditionRow
    | FalseDiscoveriesRow
    | TrendSummaryRow
    | DirectionRow
    | SteeredRow
)

_TABLES: Mapping[type[Made], str] = MappingProxyType(
    {
        MixtureRow: "mixture",
        BaselineRow: "baseline",
        EpochRow: "training_epoch",
        CheckpointRow: "checkpoint",
        SweepRow: "sweep_checkpoint",
        CapturedRow: "captured_checkpoint",
        ConditionRow: "trend_condition",
        FalseDiscoveriesRow: "false_discoveries",
        TrendSummaryRow: "trend_summary",
        DirectionRow: "steer_direction",
        SteeredRow: "steered_answer",
    }
)
MadeT = TypeVar("MadeT", bound=Made)


class Store:
    """The store in one file; every method opens it, works for a moment and closes it.

    A writer shuts out even readers of other processes, so each method waits up to `lock_timeout_s` for the
    file, then raises InputError naming the holder. Unfit files and full disks are InputErrors too.

    >>> [run.run_id for run in Store(Path("morfi.duckdb")).runs()]
    """

    def __init__(self, path: Path, *, lock_timeout_s: float = 10.0) -> None:
        self.path = path
        self._work = Work(path, lock_timeout_s)

    def prepare(self) -> None:
        """Makes the file or brings it up to date; what is unfit about it shows before any work is done."""
        self._work.prepare()

    def together(self) -> AbstractContextManager[None]:
        """For a block of quick operations of one thread: the file is opened once, not for each of them.

        No other process can read or write meanwhile. Each operation is a transaction of its own still.
        """
        if not exists(self.path):
            self.prepare()
        return self._work.holding()

    def begin_run(self, run: RunRecord, questions: Mapping[str, Sequence[Question]]) -> None:
        """Adds the run and the questions it asks, by split; the same run again changes nothing.

        Makes the file, or brings it up to date. Raises InputError where another process works on the run.
        """
        self.prepare()
        asked = [question for rows in questions.values() for question in rows]
        columns: dict[str, Sequence[object]] = {
            "data_sha256": [run.data_sha256] * len(asked),
            "question_id": [question.id for question in asked],
            "relation": [question.relation for question in asked],
            "subject": [question.subject for question in asked],
            "question": [question.text for question in asked],
            "answers": [question.answers for question in asked],
        }
        splits: dict[str, Sequence[object]] = {
            "run_id": [run.run_id] * len(asked),
            "question_id": columns["question_id"],
            "split": [split for split, rows in questions.items() for _ in rows],
        }
        with self._work.writing() as connection:
            insert_columns(connection, "run", columns_of([run]))
            same = "SELECT fingerprint FROM run WHERE run_id = ?"
            if connection.execute(same, [run.run_id]).fetchall() != [(run.fingerprint,)]:
                raise MorfiError(
                    f"run {run.run_id} is in {self.path} already, with other settings; use a new id"
                )
            lease.refuse_if_held(connection, run.run_id)
            if asked:
                insert_columns(connection, "question", columns)
                insert_columns(connection, "asked", splits)

    def check_free(self, run_id: str) -> None:
        """Raises InputError where another process works on the run, and says which one."""
        with self._work.reading() as connection:
            lease.refuse_if_held(connection, run_id)

    def begin_attempt(self, run_id: str, attempt: AttemptRecord) -> int:
        """Adds an attempt at a run and returns its number, 1 for the first.

        The run is this process' from now on, by a lease that every write renews; raises InputError where
        another process works on it. A write after another process took it over raises MorfiError.
        """
        with self._work.writing() as connection:
            lease.refuse_if_held(connection, run_id)
            last = "SELECT coalesce(max(attempt), 0) FROM attempt WHERE run_id = ?"
            number = int(connection.execute(last, [run_id]).fetchall()[0][0]) + 1
            insert_columns(connection, "attempt", columns_of([attempt], run_id=run_id, attempt=number))
            lease.take(connection, run_id, number, attempt)
        self._work.taken(run_id, number)
        return number

    def going_on(self, say: Say) -> AbstractContextManager[None]:
        """For the time that a run is worked on: leases are renewed, and a file that is held is waited for.

        What is added meanwhile is kept and written later; `say` is told.
        """
        return self._work.going_on(say)

    @property
    def n_kept(self) -> int:
        """The rows that could not be stored yet, because another process holds the file."""
        return self._work.n_kept

    def write_completions(self, rows: Sequence[CompletionRow]) -> None:
        """Adds all the rows or none, in one transaction; rows whose keys are there already are left out."""
        if rows:
            self._work.insert("completion", columns_of(rows))

    def add(self, run_id: str, rows: Sequence[Made]) -> None:
        """Adds rows, all of one kind, that the run has made; those whose keys are there are left out."""
        if rows:
            self._work.insert(_TABLES[type(rows[0])], columns_of(rows, run_id=run_id))

    def end_attempt(self, run_id: str, attempt: int, end: AttemptEnd, *, wait: bool = True) -> None:
        """Adds how the attempt ended; a second end of the same attempt changes nothing.

        Without `wait` a file that is held is an InputError after `lock_timeout_s`, inside `going_on` too.
        """
        columns = columns_of([end], run_id=run_id, attempt=attempt)
        self._work.end(run_id, attempt, columns, wait=wait)

    def finished(self, run_id: str) -> set[tuple[str, int]]:
        """The (question id, sample) pairs that the run holds a completion of."""
        with self._work.reading() as connection:
            found = connection.execute(
                "SELECT question_id, sample FROM completion WHERE run_id = ?", [run_id]
            ).fetchall()
        return {(question_id, sample) for question_id, sample in found}

    def run(self, run_id: str) -> RunRecord:
        """The run of this id, of a beginning that only one id has, or the newest for "last"."""
        return self._run(run_id)

    def _run(self, run_id: str, kind: RunKind | None = None) -> RunRecord:
        with self._work.reading() as connection:
            newest_first = "SELECT run_id, kind FROM run ORDER BY created_at DESC, run_id DESC"
            known = connection.execute(newest_first).fetchall()
            full_id = resolve(self.path, run_id, dict(known), kind)
            return read_records(connection, RunRecord, "FROM run WHERE run_id = ?", [full_id])[0]

    def run_of_kind(self, run_id: str, kind: RunKind) -> RunRecord:
        """The run that `run` finds; "last" is the newest of its kind.

        Raises InputError for a run of another command than `morfi {kind}`.
        """
        found = self._run(run_id, kind)
        if found.kind != kind:
            raise InputError(f"{found.run_id} is a run of `morfi {found.kind}`; give one of `morfi {kind}`")
        return found

    def answered_run(self, run_id: str) -> RunRecord:
        """The run that `run` finds; raises InputError for one of a command that adds nothing to `samples`."""
        found = self.run(run_id)
        if (table := _ROWS_IN.get(found.kind)) is not None:
            raise InputError(
                f"{found.run_id} is a run of `morfi {found.kind}`, which has no rows in samples; its own are "
                f"in {table}: morfi sql \"FROM {table} WHERE run_id = '{found.run_id}'\""
            )
        return found

    def latest_run(self, fingerprint: str) -> RunRecord | None:
        """The newest run with this fingerprint; None where there is none, or no file yet."""
        if not exists(self.path):
            return None
        where = "FROM run WHERE fingerprint = ? ORDER BY created_at DESC, run_id DESC LIMIT 1"
        with self._work.reading() as connection:
            found = read_records(connection, RunRecord, where, [fingerprint])
        return found[0] if found else None

    def newest_of(self, kind: RunKind, ckpt: str) -> RunRecord | None:
        """The newest run of a command on what it was given as checkpoint; None where there is none."""
        where = "FROM run WHERE kind = ? AND ckpt = ? ORDER BY created_at DESC, run_id DESC LIMIT 1"
        with self._work.reading() as connection:
            found = read_records(connection, RunRecord, where, [kind, ckpt])
        return found[0] if found else None

    def attempts(self, run_id: str) -> list[AttemptRecord]:
        """The attempts at a run, in order; `run_id` in full."""
        with self._work.reading() as connection:
            return read_records(
                connection, AttemptRecord, "FROM attempt WHERE run_id = ? ORDER BY attempt", [run_id]
            )

    def runs(self, limit: int = 20, kinds: Collection[str] = tuple(RunKind)) -> list[RunSummary]:
        """The newest `limit` runs of these kinds, newest first; raises InputError for no number of runs."""
        if isinstance(limit, bool) or not isinstance(limit, int) or not 0 < limit < 1 << 63:
            raise InputError(f"a limit of {limit!r} runs: expected a whole number of at least 1, below 2^63")
        where = "WHERE list_contains(?, kind) ORDER BY created_at DESC, run_id DESC LIMIT ?"
        return self._summaries(where, list(kinds), limit)

    def summary(self, run_id: str) -> RunSummary:
        """The line of `runs` for one run; `run_id` as in `run`."""
        return self._summaries("WHERE run_id = ?", self.run(run_id).run_id)[0]

    def _summaries(self, clause: str, *values: Any) -> list[RunSummary]:
        with self._work.reading() as connection:
            found = read_records(connection, RunSummary, f"FROM runs {clause}", list(values))
            seen = {held.run_id: lease.is_running(held.process) for held in lease.read_all(connection)}
        # The view knows the clock alone.
        changed: dict[tuple[str, bool | None], str] = {
            ("running", False): "interrupted",
            ("interrupted", True): "running",
        }
        return [
            replace(one, status=changed.get((one.status, seen.get(one.run_id)), one.status)) for one in found
        ]

    def accuracies(self, run_id: str) -> list[RelationAccuracy]:
        """Accuracy of each relation in order of name, then of the whole run; [] before the first answer."""
        with self._work.reading() as connection:
            where = "FROM accuracy WHERE run_id = ? ORDER BY relation"
            by_relation = read_records(connection, RelationAccuracy, where, [run_id])
        if not by_relation:
            return []
        n = sum(row.n for row in by_relation)
        n_correct = sum(row.n_correct for row in by_relation)
        interval = wilson_interval(n_correct, n)
        whole = RelationAccuracy(None, n, n_correct, n_correct / n, interval.low, interval.high)
        return [*by_relation, whole]

    def answer_counts(self, run: RunRecord) -> list[AnswerCounts]:
        """How the answers of a run came out, by relation in order of name."""
        with self._work.reading() as connection:
            return count_answers(connection, run.run_id, run.asked.samples, steered=run.kind == RunKind.STEER)

    def knowledge(self, run_id: str) -> list[KnowledgeRow]:
        """A split run's knowledge of each question with all its answers; by split, relation and id."""
        where = "FROM knowledge WHERE run_id = ? ORDER BY split, relation, question_id"
        with self._work.reading() as connection:
            found = read_records(connection, KnowledgeRow, where, [run_id])
        return [replace(row, answers=tuple(row.answers)) for row in found]

    def mixtures(self, run_id: str) -> list[MixtureRow]:
        """The rows of a mix run in order of level and position."""
        return self._made(MixtureRow, "mixture", run_id, "level, position")

    def baselines(self, run_id: str) -> list[BaselineRow]:
        """The best constant answers of a run, by split and relation."""
        return self._made(BaselineRow, "baseline", run_id, "split, relation")

    def epochs(self, run_id: str) -> list[EpochRow]:
        """The epochs of a train run in order of level, seed and epoch."""
        return self._made(EpochRow, "training_epoch", run_id, "level, seed, epoch")

    def checkpoints(self, run_id: str) -> list[CheckpointRow]:
        """The checkpoints of a train run in order of level, seed and epoch."""
        return self._made(CheckpointRow, "checkpoint", run_id, "level, seed, epoch, epoch_setting")

    def sweep(self, run_id: str) -> list[SweepRow]:
        """The checkpoints that a sweep has answered with, in its order."""
        return self._made(SweepRow, "sweep_checkpoint", run_id, "position")

    def captured(self, run_id: str) -> list[CapturedRow]:
        """The checkpoints whose residual streams a capture run holds, in its order."""
        return self._made(CapturedRow, "captured_checkpoint", run_id, "position")

    def trend_conditions(self, run_id: str) -> list[ConditionRow]:
        """The conditions of a find run, in the order of its latents' means; along both, the levels first."""
        return self._made(ConditionRow, "trend_condition", run_id, "axis DESC, position")

    def trend_summaries(self, run_id: str) -> list[TrendSummaryRow]:
        """The summary of each axis of a find run, the level's first; none before it ended."""
        return self._made(TrendSummaryRow, "trend_summary", run_id, "axis DESC")

    def false_discoveries(self, run_id: str) -> list[FalseDiscoveriesRow]:
        """How many latents of a find run have how large an |S| along an axis, the largest first."""
        return self._made(FalseDiscoveriesRow, "false_discoveries", run_id, "axis DESC, s DESC")

    def add_latents(self, run_id: str, latents: pa.Table) -> None:
        """Adds the latents of a find run, `morfi.latents.trends.TrendResult.latents`, all or none."""
        import pyarrow as pa

        named = latents.append_column("run_id", pa.array([run_id] * len(latents)))
        self._work.insert("latent_trend", {name: named[name] for name in named.column_names})

    def latents(self, run_id: str, *, selected: bool = False, limit: int | None = None) -> pa.Table:
        """The latents of a find run, the selected ones first, then by falling score."""
        where = "FROM latent_trend WHERE run_id = ? AND (selected OR ?)"
        order = "ORDER BY selected DESC, score DESC, latent LIMIT ?"
        with self._work.reading() as connection:
            return connection.sql(
                f"SELECT * EXCLUDE (run_id) {where} {order}",
                params=[run_id, not selected, limit if limit is not None else 2**62],
            ).to_arrow_table()

    def steer_directions(self, run_id: str) -> list[DirectionRow]:
        """The directions of a steer run, in its order."""
        return self._made(DirectionRow, "steer_direction", run_id, "position")

    def steered(self, run_id: str) -> pa.Table:
        """Verdicts of a steer run: served, direction, alpha, strength, split, question_id, correct."""
        with self._work.reading() as connection:
            return connection.sql(
                "SELECT served, direction, alpha, strength, split, question_id, correct "
                "FROM steered_answer JOIN asked USING (run_id, question_id) WHERE run_id = ? "
                "ORDER BY served, direction, alpha, split, question_id",
                params=[run_id],
            ).to_arrow_table()

    def splits(self, run_id: str) -> list[str]:
        """The splits that the questions of a run were taken from, in order of name."""
        with self._work.reading() as connection:
            by_name = "SELECT DISTINCT split FROM asked WHERE run_id = ? ORDER BY split"
            return [row[0] for row in connection.execute(by_name, [run_id]).fetchall()]

    def asked(self, run_id: str) -> list[Question]:
        """The questions that a run was begun with, in order of id."""
        with self._work.reading() as connection:
            found = connection.execute(
                "SELECT q.question_id, relation, subject, question, answers FROM asked a "
                "JOIN run r ON r.run_id = a.run_id JOIN question q ON q.data_sha256 = r.data_sha256 "
                "AND q.question_id = a.question_id WHERE a.run_id = ? ORDER BY q.question_id",
                [run_id],
            ).fetchall()
        return [_question(row) for row in found]

    def sweep_accuracies(self, run_id: str) -> list[SweepAccuracy]:
        """Accuracy of the base model, then of each level and epoch setting, on each group of questions."""
        with self._work.reading() as connection:
            return sweep_accuracies(connection, run_id)

    def _made(self, record: type[MadeT], table: str, run_id: str, order: str) -> list[MadeT]:
        where = f"FROM {table} WHERE run_id = ? ORDER BY {order}"
        with self._work.reading() as connection:
            return read_records(connection, record, where, [run_id])

    def questions(self, run_id: str) -> list[Question]:
        """The questions that the run has answered, in order of relation and id."""
        with self._work.reading() as connection:
            found = connection.execute(
                "SELECT DISTINCT question_id, relation, subject, question, answers FROM samples "
                "WHERE run_id = ? ORDER BY relation, question_id",
                [run_id],
            ).fetchall()
        return [_question(row) for row in found]

    def samples(self, run_id: str) -> pa.Table:
        """All rows of the run from the view `samples`, in order of relation, question id and sample."""
        with self.sample_rows(run_id) as rows:
            return rows.whole()

    @contextmanager
    def sample_rows(self, run_id: str) -> Iterator[Rows]:
        """As `samples`, batch by batch, for the length of the block; no process can write meanwhile."""
        by = "FROM samples WHERE run_id = ? ORDER BY relation, question_id, sample"
        with self._work.reading() as connection:
            yield streamed(connection, by, [run_id])

    def query(self, sql: str) -> pa.Table:
        """The rows of one reading SQL statement; it can reach no file and change nothing, else InputError."""
        with self.query_rows(sql) as rows:
            return rows.whole()

    @contextmanager
    def query_rows(self, sql: str, *, as_text: bool = False) -> Iterator[Rows]:
        """As `query`, batch by batch, for the length of the block; no process can write meanwhile.

        `as_text` gives moments, intervals, bits and numbers of more than 38 digits as DuckDB writes them.
        """
        with (
            self._work.reading(confined=True) as connection,
            answered(connection, sql, as_text=as_text) as rows,
        ):
            yield rows


def _question(row: Sequence[Any]) -> Question:
    question_id, relation, subject, text, answers = row
    return Question(question_id, relation, subject, text, tuple(answers))
