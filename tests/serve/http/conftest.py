"""Servers over a tiny random model, each with a find run of the whole pipeline behind it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

CHILD = Path(__file__).parent / "server_child.py"
D_MODEL, LAYER, N_LATENTS = 64, 1, 96
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}A:"


@dataclass(frozen=True)
class Made:
    """A store with a find run and a sweep, and where the pipeline's caches are."""

    db: Path
    find_run: str
    train_run: str
    cache: Path


@dataclass
class Running:
    """A server in a process of its own."""

    made: Made
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, headers=dict(self.headers), **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        with self.client() as client:
            return client.get(path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        with self.client() as client:
            return client.post(path, json=body, **options)

    def metric(self, name: str) -> float:
        """The sum of a metric's values."""
        lines = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", self.get("/metrics").text, re.M)
        return sum(map(float, lines))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def running(
    made: Made, log: Path, settings: Mapping[str, Any], environment: Mapping[str, str]
) -> Iterator[Running]:
    """A server of server_child.py with these settings."""
    port = free_port()
    job = {"db": str(made.db), "latents": [made.find_run], "port": port, **settings}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(CHILD), json.dumps(job)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"MORFI_CACHE": str(made.cache), "PYTHONSAFEPATH": "1", **environment},
            start_new_session=True,
        )
        try:
            server = Running(made, port, process, log)
            wait_until_ready(server)
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise


def wait_until_ready(server: Running, limit_s: float = 300) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < limit_s:
        if server.process.poll() is not None:
            break
        try:
            if httpx.get(f"{server.url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(f"no server came up:\n{server.log.read_text()[-6000:]}")


@pytest.fixture(scope="session")
def served_model(
    tmp_path_factory: pytest.TempPathFactory,
    make_base: Callable[[Path, str], Path],
    make_tokenizer: Callable[..., Any],
) -> Path:
    """A random Llama of two layers whose answers are printable, and depend much on its residual stream."""
    import torch
    from transformers import LlamaForCausalLM

    folder = make_base(tmp_path_factory.mktemp("models") / "tiny", "llama without biases")
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    # The logits of all other tokens (byte b is token b + 3) are 0.
    printable = {b"\n"[0] + 3, *(byte + 3 for byte in range(32, 127))}
    with torch.no_grad():
        model.lm_head.weight[[token for token in range(259) if token not in printable]] = 0
    model.save_pretrained(folder)
    make_tokenizer(chat_template=TEMPLATE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", name="make_sae")
def sae_maker() -> Callable[..., Path]:
    """Makes SAEs of the served model."""
    return make_sae


def make_sae(folder: Path, layer: int = LAYER, seed: int = 3) -> Path:
    """A random JumpReLU SAE with decoder rows of different lengths."""
    import torch
    from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    torch.manual_seed(seed)
    metadata = SAEMetadata(hook_name=f"blocks.{layer}.hook_resid_post")
    made = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_MODEL, d_sae=N_LATENTS, metadata=metadata))
    with torch.no_grad():
        made.W_enc.normal_(std=0.3)
        made.W_dec.normal_()
        made.b_enc.fill_(0.1)
        made.b_dec.zero_()
        made.threshold.fill_(0.2)
    made.save_model(folder)
    return folder


def forgetful(serving: Any, questions: Sequence[Any]) -> Any:
    """An engine that answers a third of the questions wrong once another checkpoint than M_0 is loaded."""

    class Forgetful(type(serving)):  # type: ignore[misc]
        def load_checkpoint(self, checkpoint: Any) -> None:
            super().load_checkpoint(checkpoint)
            n = 1 if "level-0" in checkpoint.name else 3
            self.known = {q.text: q.answers[0] for i, q in enumerate(questions) if n == 1 or i % n}

    return Forgetful({q.text: q.answers[0] for q in questions})


@pytest.fixture(scope="session")
def made(
    tmp_path_factory: pytest.TempPathFactory,
    served_model: Path,
    experiment_maker: Callable[..., Any],
    data_file: Path,
    questions: Mapping[str, Sequence[Any]],
    *,
    starts_vllm: None,
) -> Made:
    """The whole pipeline on the tiny model, captured by the real engine."""
    from morfi.evaluation.sweep import run_sweep
    from morfi.evaluation.sweep_plan import configure_sweep
    from morfi.latents.capture import CaptureConfig, run_capture
    from morfi.latents.find import FindConfig, run_find
    from morfi.serve.engine import start_engine
    from morfi.terminal import TerminalProgress
    from morfi.training.train import run_train

    folder = tmp_path_factory.mktemp("served")
    given = {"epochs": (1,), "rank": 2, "alpha": 64.0, "lr": 5e-2, "batch": 2, "micro_batch": 2}
    with pytest.MonkeyPatch.context() as patched, TerminalProgress() as log:
        patched.setenv("MORFI_CACHE", str(folder / "cache"))
        found = experiment_maker(folder, served_model, data_file)
        store = found.store
        train_run = run_train(given, found.mix_run, store, folder / "out", log, new=False, command="")
        engine = {"kv_cache_memory_bytes": 1 << 24}
        config = CaptureConfig(train_run, (LAYER,), engine=engine)
        captured = run_capture(config, store, start_engine, folder / "acts", log, new=False, command="")
        assert not captured.failures
        find = FindConfig(
            captured.run_id, str(make_sae(folder / "sae")), method="bootstrap", resamples=20, force=True
        )
        find_run = run_find(find, store, log, new=False, command="")
        every = [question for split in questions.values() for question in split]
        sweep = run_sweep(
            configure_sweep({"ckpts": train_run}),
            store,
            forgetful(found.serving, every),
            log,
            new=False,
            command="",
        )
        assert not sweep.failures
    return Made(store.path, find_run, train_run, folder / "cache")


@pytest.fixture(scope="session")
def serve_made(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Starts a server over `made`: settings of server_child.py's job, and variables of its environment."""

    def start(environment: Mapping[str, str] | None = None, **settings: Any) -> Any:
        log = tmp_path_factory.mktemp("server") / "log.txt"
        return running(made, log, settings, environment or {})

    return start


@pytest.fixture(scope="session")
def serve_bare(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """As `serve_made`, over an empty store."""

    def start(**settings: Any) -> Any:
        folder = tmp_path_factory.mktemp("bare")
        made = Made(folder / "morfi.db", "", "", folder / "cache")
        return running(made, folder / "log.txt", {"latents": [], **settings}, {})

    return start


@pytest.fixture(scope="session")
def server(serve_made: Callable[..., Any]) -> Iterator[Running]:
    """M_100, with the usual limits and without keys; tests leave M_100 served."""
    with serve_made() as server:
        yield server


@pytest.fixture
def clean(server: Running) -> Iterator[Running]:
    """The server, which after the test has nothing in flight and answers as before."""
    body = {"prompt": "Q: Where is it?\nA:", "max_tokens": 6, "temperature": 0, "return_token_ids": True}
    before = server.post("/v1/completions", body).json()["choices"]
    yield server
    deadline = time.monotonic() + 60
    names = ("morfi_answers_in_flight", "morfi_followed_requests")
    while any(server.metric(name) for name in names) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert {name: server.metric(name) for name in names} == dict.fromkeys(names, 0)
    # vLLM counts what runs when a step ends, so only now is what was dropped no longer counted.
    assert server.post("/v1/completions", body).json()["choices"] == before
    assert server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting") == 0
    assert server.process.poll() is None
    assert "Traceback" not in server.log.read_text()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The app of tests/fake_app.py, with no engine."""
    from fake_app import make_served

    return make_served(monkeypatch)
