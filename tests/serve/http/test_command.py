"""The command `morfi serve` itself, in processes of its own: what it refuses, says and leaves behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest


def run_serve(made: Any, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "morfi", "serve", "--db", str(made.db), "--latents", made.find_run]
    own = {"MORFI_CACHE": str(made.cache), "PYTHONSAFEPATH": "1"}
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | own,
        start_new_session=True,
    )


def test_an_unknown_checkpoint_and_a_port_in_use_are_refused(made: Any) -> None:
    unknown = run_serve(made, "--ckpt", "M_33", "--port", "0")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        busy = run_serve(made, "--ckpt", "M_100", "--port", str(port))
        for process, messages in (
            (unknown, ('"M_33" is no checkpoint of', "level-100-seed-0-epoch-early-stop")),
            (busy, (f"127.0.0.1 port {port} cannot be used",)),
        ):
            out, err = process.communicate(timeout=120)
            assert (process.returncode, out) == (2, ""), err
            for message in messages:
                assert message in err


def test_it_says_where_it_serves_and_ends_clean(made: Any) -> None:
    engine = ("--engine", "kv_cache_memory_bytes=16777216")
    numbers = (signal.SIGINT, signal.SIGTERM)
    started = [run_serve(made, "--ckpt", "base", "--port", "0", "--json", *engine) for _ in numbers]
    try:
        for process, number in zip(started, numbers, strict=True):
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            assert served_at(url) == "base"
            children = psutil.Process(process.pid).children(recursive=True)
            assert children
            process.send_signal(number)
            _, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            noise = [line for line in err.splitlines() if not line.startswith("[")]  # but for our phases
            assert noise == []
            _, alive = psutil.wait_procs(children, timeout=10)
            assert not alive
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def served_at(url: str) -> str:
    """The checkpoint that a server which has just said its URL serves."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return str(httpx.get(f"{url}v1/morfi/capabilities").json()["checkpoint"])
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_folder_is_served_as_its_checkpoint(made: Any) -> None:
    from morfi.conditions.condition import Condition
    from morfi.serve.http.catalog import load_catalog
    from morfi.serve.http.launch import chosen
    from morfi.store import Store
    from morfi.terminal import TerminalProgress

    with pytest.MonkeyPatch.context() as patched, TerminalProgress() as progress:
        patched.setenv("MORFI_CACHE", str(made.cache))
        catalog = load_catalog(Store(made.db), made.find_run, None, progress)
        condition = catalog.checkpoints["level-50-seed-0-epoch-1"]
        assert isinstance(condition, Condition)
        folder = catalog.series.members[condition].path
        name, checkpoint = chosen(folder, catalog, None, progress)
        assert (name, checkpoint.sha256) == ("level-50-seed-0-epoch-1", catalog.open(name).sha256)
        base = str(Path(catalog.series.base.model_dir))
        assert chosen(base, catalog, None, progress) == ("base", catalog.series.base)
        assert chosen("M_100", catalog, None, progress)[0] == "level-100-seed-0-epoch-early-stop"


def test_it_fails_when_its_engine_dies(made: Any) -> None:
    engine = ("--engine", "kv_cache_memory_bytes=16777216")
    process = run_serve(made, "--ckpt", "base", "--port", "0", *engine)
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("serving on http://127.0.0.1:")
        children = psutil.Process(process.pid).children(recursive=True)
        max(children, key=lambda child: child.memory_info().rss).kill()
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1, err
        assert "vLLM's engine has died" in err
        assert "Loading safetensors checkpoint shards" in err  # its last messages
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
