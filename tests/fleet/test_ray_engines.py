"""Engines in actors of Ray: what they answer, and what becomes of them when they die, hang or are let go."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from child_process import left
from evaluated import facts, run
from fake_engine import FakeEngine
from losing_engines import Killing

from morfi.engine.protocol import Sampling
from morfi.errors import InputError, MorfiError
from morfi.evaluation.config import EvalConfig
from morfi.fleet.pool import EngineLostError
from morfi.fleet.ray_engines import RayStarter, cores_of, running_ray
from morfi.store import Store

pytest.importorskip("ray")
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("isolated_cache")]

CHILD = Path(__file__).parents[1] / "evaluation" / "sweep_child.py"
HOW = {"context": 64, "seed": 0, "overrides": {}}
PROMPT = [byte + 3 for byte in b"Q: Where?\nA:"]


class Odd(FakeEngine):
    """An engine that says on which cores, with how many threads and in which folders it runs."""

    def reset_prefix_cache(self) -> None:
        import torch
        from torch._inductor.runtime.cache_dir_utils import cache_dir

        cores = sorted(os.sched_getaffinity(0))
        gpus, folders = os.environ.get("CUDA_VISIBLE_DEVICES"), (tempfile.gettempdir(), cache_dir())
        raise InputError(f"{cores} {torch.get_num_threads()} {gpus} {folders}")


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    """Ray for all tests of this file."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # an actor cannot import a test
    with running_ray(2):
        yield


@pytest.mark.slow
def test_engines_that_are_killed_at_random_lose_and_double_nothing(
    tmp_path: Path, tiny_model: Path, data_file: Path, serving: Any
) -> None:
    config = EvalConfig(str(tiny_model), data=str(data_file), shots=2, batch=1)
    one, several = Store(tmp_path / "one.duckdb"), Store(tmp_path / "several.duckdb")
    whole = facts(one, run(config, one, serving))
    serving.pause_s = 0.5
    killing = Killing(serving, 10)
    while killing.n_killed < killing.n:
        try:
            found = facts(several, run(config, several, killing))
        except MorfiError as error:  # the same questions thrice
            assert "engines were lost one after the other" in str(error)  # noqa: PT017
            continue
        assert found == whole
    assert not [pid for pid in killing.pids if Path(f"/proc/{pid}").exists()]


def test_cores_and_threads_are_each_engine_s_own_and_so_are_temporary_files_but_not_compiled_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = tmp_path / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    starter = RayStarter(Odd({}), "tiny", HOW, 2, tmp_path)  # type: ignore[arg-type]
    try:
        for number in (0, 1):
            cores = cores_of(number, 2)
            engine = starter.start(number)
            said = f"{cores} {len(cores)} None {(str(tmp_path), str(compiled))}"
            with pytest.raises(InputError, match=f"^{re.escape(said)}$"):
                engine.reset_prefix_cache()
    finally:
        starter.end(0)
        starter.end(1)


def test_an_engine_that_hangs_or_breaks_is_lost_and_one_that_refuses_is_not(tmp_path: Path) -> None:
    broken = FakeEngine({}, stop_after=1)
    starter = RayStarter(broken, "tiny", HOW, 1, tmp_path)  # type: ignore[arg-type]
    try:
        engine = starter.start(0)
        assert engine.generate([PROMPT], Sampling()) == broken.generate([PROMPT], Sampling())
        with pytest.raises(EngineLostError, match="the engine died"):
            engine.generate([PROMPT], Sampling())
        starter.end(0)
        starter.start_engine = FakeEngine({}, pause_s=600, unloadable=frozenset({"other"}))
        engine = starter.start(0)
        with pytest.raises(InputError, match="other does not fit"):
            engine.load_checkpoint(type("Other", (), {"name": "other"})())
        engine.longest_s = 0.5
        with pytest.raises(EngineLostError, match="no answer for 0"):
            engine.generate([PROMPT], Sampling())
    finally:
        starter.end(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_an_ended_command_leaves_no_process_and_goes_on(
    number: int, code: int, tmp_path: Path, tiny_model: Path, data_file: Path
) -> None:
    tag = f"MORFI_TEST={tmp_path}"
    name, value = tag.split("=")
    store = Store(tmp_path / "morfi.duckdb")
    given = ["eval", "--ckpt", tiny_model, "--data", data_file, "--shots", 2, "--batch", 1]
    given += ["--engines", 2, "--resume", "auto", "--db", store.path]
    command = [sys.executable, str(CHILD), "0.5", *map(str, given)]
    environment = {**os.environ, name: value, "PYTHONSAFEPATH": "1"}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as child:
        deadline = time.monotonic() + 300
        while not (store.path.exists() and store.runs() and store.runs()[0].n_done > 2):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        child.send_signal(number)
        said = child.communicate()[1].decode()
    assert child.returncode == code, said
    assert left(tag) == {}
    if number != signal.SIGKILL:
        assert not list(Path("/tmp").glob(f"morfi-ray-{child.pid}-*"))
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    run_id = store.runs()[0].run_id
    assert (store.summary(run_id).n_done, store.summary(run_id).n_attempts) == (20, 2)
