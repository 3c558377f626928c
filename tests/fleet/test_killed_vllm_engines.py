"""Processes of vLLM engines, killed at any moment: nothing is lost, nothing doubled, and nothing is left."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from child_process import left, tagged
from evaluated import facts, run
from losing_engines import Killing

from morfi.errors import MorfiError
from morfi.evaluation.config import EvalConfig
from morfi.fleet.pool import NONE_LEFT
from morfi.fleet.ray_engines import starting
from morfi.serve.engine import start_engine
from morfi.store import Store

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("starts_vllm")]

N_KILLS = 10


@pytest.fixture
def assert_nothing_left(tag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Fails where a process that was started since is left, or a temporary file of one."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))

    def check() -> None:
        assert left(tag) == {}
        assert not list(temporary.iterdir())
        assert not list(Path("/tmp").glob(f"morfi-ray-{os.getpid()}-*"))

    return check


def test_engines_that_are_killed_while_they_answer(
    served_config: EvalConfig, assert_nothing_left: Callable[[], None], tmp_path: Path
) -> None:
    alone = Store(tmp_path / "alone.duckdb")
    whole = facts(alone, run(served_config, alone, start_engine))
    killing = Killing(start_engine, N_KILLS, longest_s=1.5)
    for number in itertools.count():
        store, run_id = Store(tmp_path / f"{number}.duckdb"), None
        while run_id is None:
            try:
                run_id = run(served_config, store, killing, resume="auto")
            except MorfiError as error:
                assert NONE_LEFT in str(error) or "lost one after the other" in str(error)  # noqa: PT017
            assert_nothing_left()
        assert facts(store, run_id) == whole
        if killing.n_killed == N_KILLS:
            break


def test_an_engine_that_is_killed_while_it_starts(
    served_config: EvalConfig, tag: str, assert_nothing_left: Callable[[], None], tmp_path: Path
) -> None:
    def kill() -> None:
        engines: list[int] = []
        while not engines:
            time.sleep(0.1)
            engines = [pid for pid, name in tagged(tag).items() if name.startswith("ray::EngineActor")]
        time.sleep(random.random())
        os.kill(random.choice(engines), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    start = starting(start_engine, 2, verbose=False)
    with pytest.raises(MorfiError, match=r"^an engine could not start: its process has ended$"):
        run(served_config, Store(tmp_path / "morfi.duckdb"), start)
    killer.join()
    assert_nothing_left()
