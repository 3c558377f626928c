"""`morfi serve`: vLLM's server around a steering engine, from its start to its clean end."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.checkpoints.tokenizer import open_tokenizer, tokenizer_folder
from morfi.device import is_gpu
from morfi.errors import InputError, MorfiError
from morfi.serve import settings as engine_settings
from morfi.serve.http.keys import Keys, check_reachable, is_loopback, read_keys
from morfi.serve.http.sites import Sites, read_sites
from morfi.serve.processes import kept_back, quiet

if TYPE_CHECKING:
    from morfi.serve.http.gate import Limits
    from morfi.serve.http.launch import Launch


_TO_END_S = 5  # for clients that still read, when the server is told to end


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, and who may use it."""

    host: str = "127.0.0.1"
    port: int = 8000
    keys: Keys = field(default_factory=Keys)
    sites: Sites = field(default_factory=Sites)

    @classmethod
    def of(
        cls,
        host: str,
        port: int,
        keys: Path | None,
        *,
        allow_origin: Sequence[str],
        trust_forwarded: Sequence[str],
        root_path: str,
    ) -> Address:
        """The address that the options of `morfi serve` describe; raises InputError where one must not be."""
        address = cls(host, port, read_keys(keys), read_sites(allow_origin, trust_forwarded, root_path))
        check_reachable(host, address.keys)
        return address

    @property
    def shown(self) -> str:
        """The host as a URL has it."""
        return f"[{self.host}]" if ":" in self.host else self.host


def run_server(
    launch: Launch,
    *,
    address: Address,
    on_ready: Callable[[str], None],
    limits: Limits | None = None,
    verbose: bool = False,
) -> None:
    """Serves the checkpoint of `launch` until a signal ends it; `on_ready` gets the URL.

    Unless `verbose`, what vLLM and its processes print is kept back until the engine does not start, or dies.
    Raises InputError for an address that cannot be used, and for overrides with which no request could be
    steered, and MorfiError where vLLM cannot start.
    """
    check_reachable(address.host, address.keys)
    gpu = is_gpu()
    engine_settings.check_sound(launch.overrides, gpu=gpu, seeded=True)
    sock = listen(address)
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    engine_settings.prepare_process(gpu=gpu, verbose=verbose, overrides=launch.overrides)
    checkpoint = launch.start
    found = open_tokenizer(checkpoint.model_dir, launch.bos)
    settings = engine_settings.engine_arguments(
        checkpoint.model_dir,
        dtype=checkpoint.dtype,
        context=launch.context,
        seed=0,
        gpu=gpu,
        overrides=launch.overrides,
        tokenizer=tokenizer_folder(found, checkpoint.model_dir),
    )
    settings |= {"disable_log_stats": False, "served_model_name": [launch.model]}
    signal.signal(signal.SIGTERM, _interrupt)  # until vLLM's server has its own handler
    try:
        with sock, tempfile.TemporaryFile() as log, contextlib.ExitStack() as starting:
            starting.enter_context(quiet(verbose, log))
            import uvloop

            from morfi.serve.plugin import hooks

            if not gpu:
                import morfi.serve.cpu_norm  # noqa: F401 - registers what the settings name
            hooks.register()

            def ready(url: str) -> None:
                starting.close()
                on_ready(url)

            try:
                uvloop.run(_serve(_Job(launch, address, sock, settings, ready, limits, verbose)))
            except _DeadEngineError:
                sys.stderr.write(kept_back(log).decode(errors="replace"))
                raise
    finally:
        gc.unfreeze()  # vLLM froze the heap, whose objects would else be called leaked at the end


def listen(address: Address) -> socket.socket:
    """A socket bound to the address, before anything that takes long is started."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((address.host, address.port))
    except (OSError, OverflowError) as error:
        found.close()
        raise InputError(
            f"{address.host} port {address.port} cannot be used: {error}; give another --host or --port"
        ) from error
    return found


class _DeadEngineError(MorfiError):
    """The engine ended while the server ran."""


def _interrupt(*_: object) -> None:
    raise SystemExit(130)  # vLLM's start swallows a KeyboardInterrupt


@dataclass(frozen=True, slots=True)
class _Job:
    """All that the server's event loop needs."""

    launch: Launch
    address: Address
    sock: socket.socket
    settings: Mapping[str, Any]
    on_ready: Callable[[str], None]
    limits: Limits | None
    verbose: bool


async def _serve(job: _Job) -> None:
    from vllm.entrypoints.launchers.launcher import serve_http

    from morfi.serve.http.app import make_app
    from morfi.serve.http.async_engine import check_steerable, start_async_engine
    from morfi.serve.http.gate import Gate, Limits
    from morfi.serve.http.protocol import impatient_protocol
    from morfi.serve.http.state import start_state

    address, launch = job.address, job.launch
    engine = start_async_engine(launch.start, job.settings)
    try:
        await check_steerable(engine)
        if launch.checkpoint.sha256 != launch.start.sha256:
            await engine.load_checkpoint(launch.checkpoint)
        gate = Gate(job.limits or Limits().at_least(job.settings.get("max_num_seqs", 0)))
        needs_key = address.keys.needed
        state = await start_state(engine, launch, gate, needs_key=needs_key)
        args = frontend_arguments(job.settings, address)
        local = is_loopback(address.host)
        app = await make_app(state, args, address.keys, local=local, sites=address.sites)
        job.on_ready(f"http://{address.shown}:{job.sock.getsockname()[1]}{address.sites.root_path}/")
        shutdown = await serve_http(
            app,
            job.sock,
            host=address.host,
            port=address.port,
            log_level="info" if job.verbose else "warning",
            access_log=job.verbose,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=_TO_END_S,
            proxy_headers=False,  # the guard decides whom to believe
            http=impatient_protocol(gate.limits.read_s),
            ws="none",
        )
        if not engine.was_shut_down:
            raise _DeadEngineError("vLLM's engine has died, as its last messages say; start the server again")
    finally:
        engine.shutdown()
    await shutdown


def frontend_arguments(settings: Mapping[str, Any], address: Address) -> Namespace:
    """The arguments of vLLM's own server, for its app: its defaults, but closed to other origins."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    args: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    (model,) = settings["served_model_name"]
    own = {
        "model": model,  # which is shown; the path is not
        "served_model_name": [model],
        "host": address.host,
        "port": address.port,
        "allowed_origins": [],
        "api_key": [""],  # else vLLM takes VLLM_API_KEY; the guard looks at keys
        "enable_offline_docs": True,  # no page that asks other servers
        "disable_log_stats": False,
        "log_error_stack": False,
    }
    for name, value in own.items():
        setattr(args, name, value)
    return args
