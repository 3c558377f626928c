"""The guard before all routes, around a small app, in a real HTTP server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn

from morfi.errors import InputError
from morfi.serve.http.gate import Limits
from morfi.serve.http.guard import Guard
from morfi.serve.http.keys import Keys
from morfi.serve.http.protocol import impatient_protocol
from morfi.serve.http.sites import Asked, read_sites

PATIENT = Limits(max_body_bytes=1000, read_s=60, stall_s=60)  # a busy machine is slow to ask
IMPATIENT = Limits(max_body_bytes=1000, read_s=1, stall_s=1)
USER, ADMIN = "user-key-123", "admin-key-456"


@dataclass
class Small:
    """An app that says what reached it; /flood sends without end. `closed`: requests whose cleanup ran."""

    closed: int = 0
    flooding: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        scope["morfi.cleanup"].callback(self._count)
        message = await receive()
        found = {"role": scope["morfi.role"], "n": len(message["body"]), "path": scope["path"]}
        if scope.get("root_path"):
            found |= {"root": scope["root_path"], "client": scope["client"][0]}
        start = {"type": "http.response.start", "status": 200, "headers": []}
        if scope["path"] == "/flood":
            await send(start)
            while True:
                self.flooding += 1
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        content = json.dumps(found).encode()
        await send({**start, "headers": [(b"content-length", str(len(content)).encode())]})
        await send({"type": "http.response.body", "body": content})

    def _count(self) -> None:
        self.closed += 1


@dataclass
class Served:
    """The small app behind the guard at `port`."""

    app: Small
    port: int
    needs_key: bool

    def get(self, path: str = "/v1/x", method: str = "GET", **options: Any) -> httpx.Response:
        return httpx.request(method, f"http://127.0.0.1:{self.port}{path}", timeout=10, **options)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@contextlib.contextmanager
def serving(keys: Keys, limits: Limits = PATIENT, **options: Any) -> Iterator[Served]:
    """The small app behind a guard with these keys and options."""
    app = Small()
    guard = Guard(app, keys=keys, limits=limits, local=True, **options)
    config = uvicorn.Config(
        guard,
        port=0,
        log_level="critical",
        lifespan="off",
        http=impatient_protocol(limits.read_s),
        ws="none",
        proxy_headers=False,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Served(app, server.servers[0].sockets[0].getsockname()[1], keys.needed)
    server.should_exit = server.force_exit = True
    thread.join()


@pytest.fixture(params=[Keys(), Keys(USER, ADMIN)], ids=["open", "keys"], scope="module")
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    with serving(request.param) as served:
        yield served


@pytest.fixture(scope="module")
def impatient() -> Iterator[Served]:
    """Gives up after a second whoever sends or reads too slowly."""
    with serving(Keys(USER, ADMIN), IMPATIENT) as served:
        yield served


@pytest.fixture(scope="module")
def proxied() -> Iterator[Served]:
    """Behind a proxy that shows it at https://morfi.example/tools, and that is believed."""
    sites = read_sites(["https://morfi.example"], ["127.0.0.1"], "/tools/")
    with serving(Keys(USER, ADMIN), sites=sites) as served:
        yield served


def key(served: Served, name: str = USER) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"} if served.needs_key else {}


def test_a_request_comes_through_whole_with_its_role(served: Served) -> None:
    answer = served.get(method="POST", content=b"a" * 1000, headers=key(served))
    role = "user" if key(served) else "admin"
    assert answer.json() == {"role": role, "n": 1000, "path": "/v1/x"}
    assert served.get(headers=key(served, ADMIN)).json()["role"] == "admin"


def test_missing_and_wrong_keys_are_refused_but_for_health_and_the_page(served: Served) -> None:
    if not key(served):
        for path in ("/v1/x", "/metrics", "/"):
            assert served.get(path).json()["role"] == "admin"
        return
    for headers in ({}, {"authorization": "Bearer wrong-key-000"}, {"authorization": f"Basic {USER}"}):
        for path in ("/v1/x", "/metrics", "/openapi.json", "/v1/models", "//health", "/health/", "/nothing"):
            answer = served.get(path, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert answer.json()["error"]["code"] == 401
        for path in ("/health", "/"):
            assert served.get(path, headers=headers).json()["role"] == "nobody"


@pytest.mark.parametrize("n", [1001, 10_000_000])
def test_a_large_body_is_refused_with_its_length_said_or_not(served: Served, n: int) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(0, n, 100_000):
            yield b"a" * min(n, 100_000)

    said = served.get(method="POST", content=b"a" * n, headers=key(served))
    assert (said.status_code, said.json()["error"]["type"]) == (413, "body")
    try:
        unsaid = served.get(method="POST", content=parts(), headers=key(served))
        assert unsaid.status_code == 413
    except httpx.TransportError:
        assert n > 16 * PATIENT.max_body_bytes  # cut off while it was still sending
    assert served.get(headers=key(served)).status_code == 200


@pytest.mark.long
def test_a_body_that_comes_too_slowly_is_given_up(impatient: Served) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in key(impatient).items())
    with impatient.connect() as sock:
        sock.sendall(f"POST /v1/x HTTP/1.1\r\nhost: localhost\r\n{head}content-length: 500\r\n\r\n".encode())
        begun = time.monotonic()
        sock.sendall(b"a")
        answer = sock.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - begun > IMPATIENT.read_s / 2


@pytest.mark.long
def test_headers_that_come_too_slowly_are_given_up(impatient: Served) -> None:
    with impatient.connect() as sock, impatient.connect() as silent:
        sock.sendall(b"GET /v1/x HTTP/1.1\r\nhost: localhost\r\nx-slow: ")
        assert sock.recv(4096) == b""
        assert silent.recv(4096) == b""


@pytest.mark.long
def test_a_client_that_does_not_read_is_given_up(impatient: Served) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in key(impatient).items())
    before = impatient.app.closed
    with impatient.connect() as sock:
        sock.sendall(f"GET /flood HTTP/1.1\r\nhost: localhost\r\n{head}\r\n".encode())
        deadline = time.monotonic() + 60
        while impatient.app.closed == before and time.monotonic() < deadline:
            time.sleep(0.05)
    assert impatient.app.closed == before + 1


def test_other_names_and_other_sites_are_refused(served: Served) -> None:
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", ""):
        answer = served.get(headers={**key(served), "host": host})
        assert (answer.status_code, answer.json()["error"]["type"]) == (403, "host")
    for host in ("localhost", "localhost:9", f"127.0.0.1:{served.port}", "[::1]:80"):
        assert served.get(headers={**key(served), "host": host}).status_code == 200
    own = f"http://127.0.0.1:{served.port}"
    assert served.get(headers={**key(served), "origin": own}).status_code == 200
    for origin in ("https://evil.example", "null", "http://[", "", f"http://127.0.0.1:{served.port + 1}"):
        assert served.get(headers={**key(served), "origin": origin}).status_code == 403


PAGE = "https://morfi.example"


@pytest.mark.parametrize(
    ("host", "origin", "forwarded", "status"),
    [
        ("127.0.0.1:8000", PAGE, {}, 200),  # as nginx sends it by itself
        ("morfi.example", PAGE, {}, 200),  # proxy_set_header Host $host
        ("morfi.example", None, {}, 200),
        ("localhost", None, {}, 200),
        ("evil.example", None, {}, 403),  # a site that leads its own name here
        ("evil.example", "https://evil.example", {}, 403),
        ("127.0.0.1:8000", "https://evil.example", {}, 403),
        ("127.0.0.1:8000", "http://morfi.example", {}, 403),
        ("127.0.0.1:8000", "https://morfi.example:444", {}, 403),
        ("127.0.0.1:8000", "null", {}, 403),
        ("127.0.0.1:8000", None, {"x-forwarded-host": "evil.example"}, 403),
        ("127.0.0.1:8000", PAGE, {"x-forwarded-host": "morfi.example", "x-forwarded-proto": "https"}, 200),
        ("morfi.example", "null", {"x-forwarded-proto": "wss"}, 403),
        ("morfi.example", "null", {"x-forwarded-proto": "h2"}, 403),
        ("morfi.example", "https://evil.example/x", {"x-forwarded-proto": "h2"}, 403),
        (
            "127.0.0.1",
            "http://localhost",
            {"x-forwarded-host": "localhost", "x-forwarded-proto": "https"},
            403,
        ),
    ],
)
def test_behind_a_proxy_its_own_page_may_ask_and_no_other(
    proxied: Served, host: str, origin: str | None, forwarded: dict[str, str], status: int
) -> None:
    headers = {"host": host, **key(proxied), **forwarded} | ({"origin": origin} if origin else {})
    assert proxied.get(headers=headers).status_code == status


def test_the_root_path_may_be_taken_off_or_not(proxied: Served) -> None:
    for path in ("/v1/x", "/tools/v1/x"):
        found = proxied.get(path, headers={**key(proxied), "x-forwarded-for": "6.6.6.6, 10.1.2.3"}).json()
        assert (found["path"], found["root"]) == ("/tools/v1/x", "/tools")
        assert found["client"] == "10.1.2.3"  # what the proxy saw, not what its client said
    for path in ("/", "/tools/", "/tools/health", "/health"):
        assert proxied.get(path).json()["role"] == "nobody"
    assert proxied.get("/toolsx").status_code == 401
    moved = proxied.get("/tools")
    assert (moved.status_code, moved.headers["location"]) == (307, "/tools/")


def test_what_a_proxy_says_is_believed_of_those_named_only(served: Served) -> None:
    headers = {"x-forwarded-host": "127.0.0.1:9", "origin": "http://127.0.0.1:9"}
    assert served.get(headers={**key(served), **headers}).status_code == 403


def test_browsers_are_told_that_an_allowed_page_may_ask(proxied: Served, served: Served) -> None:
    headers = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    told = proxied.get(method="OPTIONS", headers=headers)
    assert told.status_code == 204
    assert told.headers["access-control-allow-origin"] == PAGE
    assert told.headers["access-control-allow-headers"] == "authorization,content-type"
    for answer in (
        proxied.get(headers={"origin": PAGE, **key(proxied)}),
        proxied.get(headers={"origin": PAGE}),
    ):
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert answer.headers["vary"] == "origin"
    for other in (proxied, served):
        answer = other.get(method="OPTIONS", headers={**headers, "origin": "https://evil.example"})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("origins", "proxies", "root_path", "words"),
    [
        (["*"], [], "", "is not an origin"),
        (["morfi.example"], [], "", "is not an origin"),
        (["https://morfi.example/x"], [], "", "is not an origin"),
        (["https://user@morfi.example"], [], "", "is not an origin"),
        (["ftp://morfi.example"], [], "", "is not an origin"),
        (["https://morfi.example:99999"], [], "", "is not an origin"),
        ([], ["*"], "", "is not an address"),
        ([], ["localhost"], "", "is not an address"),
        ([], [], "tools", "is not a path"),
        ([], [], "//tools", "is not a path"),
        ([], [], "/tools?x", "is not a path"),
    ],
)
def test_options_that_name_no_site_are_refused(
    origins: list[str], proxies: list[str], root_path: str, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        read_sites(origins, proxies, root_path)


@pytest.mark.parametrize("origin", ["null", "", "http://[", "//", "https://"])
@pytest.mark.parametrize("scheme", [None, "http"])
def test_what_is_no_origin_is_no_page_of_this_server(origin: str, scheme: str | None) -> None:
    for host in ("", "localhost", "null"):
        assert not Asked(host, scheme, origin, None).is_same_place


def test_origins_are_compared_as_browsers_write_them() -> None:
    sites = read_sites(["HTTPS://Morfi.Example:443/", "http://[::1]:3000"], ["10.0.0.0/8"], "")
    assert sites.origins == {"https://morfi.example", "http://[::1]:3000"}
    assert sites.allows("https://morfi.example")
    assert not sites.allows("null")
