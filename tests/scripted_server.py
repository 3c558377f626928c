"""A small OpenAI-compatible server in a thread, which answers as it is told to: also wrongly."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "tiny"
SECRET = "sk-never-to-be-seen-0123456789"


@dataclass(frozen=True)
class Reply:
    """What is sent for a request: after a pause, and only `n_sent` bytes of the body where that is given."""

    body: object = None  # JSON, or bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    pause_s: float = 0.0
    n_sent: int | None = None


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass
class ScriptedServer:
    """Knows some answers; gives `fault` to the completions asked for from number `fault_from` on.

    The last question of a prompt decides the answer, as a greedy model's.
    """

    known: Mapping[str, str] = field(default_factory=dict)
    fault: Reply | None = None
    fault_from: int = 0
    n_faults: int = 1 << 30  # so often
    change: Callable[[dict[str, Any]], object] = lambda found: found  # of every answer
    listing: Reply | None = None
    received: list[Received] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def asked(self) -> list[Received]:
        """The requests for completions."""
        return [one for one in self.received if one.path.endswith("completions")]

    def reply(self, request: Received) -> Reply:
        """The reply to a request."""
        with self._lock:
            self.received.append(request)
            n_before = len(self.asked) - 1
        if request.path == "/v1/models":
            # `created` is that of the request, as vLLM has it.
            return self.listing or Reply({"data": [{"id": MODEL, "created": time.time_ns(), "root": "r"}]})
        if request.path not in ("/v1/completions", "/v1/chat/completions"):
            return Reply({"error": {"message": "no such route"}}, 404)
        if self.fault is not None and self.fault_from <= n_before < self.fault_from + self.n_faults:
            return self.fault
        return Reply(self.change(self.answer(request.body)))

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a body, as OpenAI's API has it."""
        chat = "messages" in body
        asked = body["messages"][-1]["content"] if chat else body["prompt"]
        question = asked if chat else asked.rpartition("Q: ")[2].removesuffix("\nA:")
        text = f" {self.known.get(question, 'no idea')} "
        said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        return {
            "id": "x",
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", **said}],
            "usage": {
                "prompt_tokens": len(str(asked)),
                "completion_tokens": len(text.split()),
                "prompt_tokens_details": {"cached_tokens": 3},
            },
        }

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Counts the requests that are answered together."""
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        yield
        with self._lock:
            self._at_once -= 1


@contextlib.contextmanager
def scripted(server: ScriptedServer) -> Iterator[ScriptedServer]:
    """The server, at its `url` for the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, body: Any) -> None:
            with server.at_work():
                reply = server.reply(Received(self.path, dict(self.headers), body))
                time.sleep(reply.pause_s)
                content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                kind = "text/html" if isinstance(reply.body, bytes) else "application/json"
                with contextlib.suppress(OSError):  # the client may have gone
                    if reply.n_sent != 0:
                        self.send_response(reply.status)
                        for name, value in ({"Content-Type": kind} | dict(reply.headers)).items():
                            self.send_header(name, value)
                        self.send_header("Content-Length", str(len(content)))
                        self.end_headers()
                        self.wfile.write(content[: reply.n_sent])
                    if reply.n_sent is not None:
                        self.wfile.flush()
                        self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}/v1"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
