"""The options that every command takes, and how a command answers."""

from __future__ import annotations

import functools
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.errors import InputError, MorfiError
from morfi.terminal import OutputError, takes_unicode, to_reader

if TYPE_CHECKING:
    from morfi.engine.protocol import StartEngine, TimeVllm
    from morfi.questions.prompts import ShownPrompt
    from morfi.report.runs import Report
    from morfi.store import Store
    from morfi.training.mixtures import Dropped


@dataclass(frozen=True, slots=True)
class Common:
    """The options that every command takes."""

    db: Path
    verbose: bool
    as_json: bool

    @property
    def store(self) -> Store:
        """The store in the file that --db names."""
        from morfi.store import Store

        return Store(self.db)

    @property
    def start_engine(self) -> StartEngine:
        """Starts vLLM, which logs only with --verbose; nothing of it is imported before."""

        def start(*given: Any, **how: Any) -> Any:
            from morfi.serve.engine import start_engine

            return start_engine(*given, **how, verbose=self.verbose)

        return start

    def start_engines(self, n: int, endpoint: str | None = None) -> StartEngine:
        """Starts `n` engines as one; raises InputError where that cannot be: of a server, for one."""
        if n == 1:
            return self.start_engine
        if endpoint is not None:
            raise InputError("--engines with --endpoint: the server has its own; leave --engines out")
        from morfi.fleet.ray_engines import check_engines, starting
        from morfi.serve.engine import start_engine

        check_engines(n)
        return starting(functools.partial(start_engine, verbose=self.verbose), n, verbose=self.verbose)

    @property
    def time_vllm(self) -> TimeVllm:
        """Starts vLLM without morfi's plugin, which logs only with --verbose."""
        from morfi.serve.without_plugin import seconds_without_plugin

        return functools.partial(seconds_without_plugin, verbose=self.verbose)

    @property
    def command(self) -> str:
        """The command line, for the record of the attempt."""
        return shlex.join(["morfi", *sys.argv[1:]])

    def checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options that were `given`, with --engine as vLLM takes it."""
        from morfi.serve.engine import engine_overrides

        return {**given, "engine": engine_overrides(given["engine"], verbose=self.verbose) or None}

    def taken(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """As `checked`, of a command that may have no --engine."""
        return self.checked(given) if "engine" in given else given

    def answer(self, found: dict[str, Any], text: str) -> None:
        """Prints the command's answer: one JSON object for --json, else the text."""
        if self.as_json:
            text = json.dumps({"run_id": None} | found, default=str, ensure_ascii=not takes_unicode())
        with to_reader():
            print(text)  # noqa: T201

    def say(self, text: str) -> None:
        """Prints a part of the command's answer as soon as it is there, but for --json."""
        if not self.as_json:
            with to_reader():
                print(text)  # noqa: T201

    def show(self, prompts: Sequence[ShownPrompt]) -> None:
        """Answers with prompts, of a command that asks nothing."""
        from morfi.report.listing import prompts_text

        self.answer({"prompts": [asdict(one) for one in prompts]}, prompts_text(prompts))

    def tell(self, found: dict[str, Any], text: str, kept: str) -> None:
        """As `answer`, of work that is done: where nothing can be printed, a line says where it is `kept`."""
        try:
            self.answer(found, text)
        except OutputError as error:
            print(f"morfi: {error}; {kept}", file=sys.stderr)  # noqa: T201

    def report(self, run_id: str, dropped: Dropped | None = None) -> None:
        """Answers with the report of a stored run; `dropped` as in `report_of`."""
        from morfi.report.runs import report_of

        self._say(run_id, report_of(self.store, run_id, dropped), ())

    def report_drawn(self, run_id: str, figure: Path | None) -> None:
        """As `report`, and writes the run's picture to `figure`, by default beside the database."""
        from morfi.report.pictures import draw
        from morfi.report.runs import report_of

        pictures = draw(self.store, run_id, figure or self.db.parent / run_id)
        self._say(run_id, report_of(self.store, run_id), pictures)

    def check(self, failures: Sequence[str]) -> None:
        """Raises MorfiError, for the exit code, where checkpoints failed; the others are reported by now."""
        if failures:
            raise MorfiError(f"checkpoints that failed: {'; '.join(failures)}")

    def _say(self, run_id: str, report: Report, pictures: Sequence[Path]) -> None:
        named = {"pictures": list(map(str, pictures))} if pictures else {}
        lines = [report.text, *(f"picture: {path}" for path in pictures)]
        kept = f"the run is stored: morfi show {run_id} --db {shlex.quote(str(self.db))}"
        self.tell({**report.object, **named}, "\n".join(lines), kept)
