"""The fake on a port, in a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from fake_api.api import FakeApi
from fake_api.routes import make_app


@contextlib.contextmanager
def serving(api: FakeApi, port: int = 0, around: Callable[[Any], Any] = lambda app: app) -> Iterator[FakeApi]:
    """Serves `api`, with `around` around its app, on a loopback port, and says where in its `url`."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        api.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        config = uvicorn.Config(
            around(make_app(api)), log_level="critical", timeout_graceful_shutdown=1, lifespan="off"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield api
        finally:
            server.should_exit = True
            thread.join(10)
