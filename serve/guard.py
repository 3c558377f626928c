"""What every HTTP request must pass before any route sees it: address, key, size, and time to arrive."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from morfi.serve.gate import Limits, Refused
from morfi.serve.keys import Keys
from morfi.serve.metrics import REFUSED

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

WITHOUT_KEY = frozenset({"/", "/health"})
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_DISCARDED = 16  # so many bodies' worth of a too large one is read, so that the client can read the answer


class Guard:
    """ASGI middleware around the whole server. `local`: bound to loopback, so that only its names are right.

    Puts "morfi.role" ("user" or "admin") and "morfi.cleanup" (an ExitStack closed when the request is over)
    into the scope.
    """

    def __init__(self, app: App, *, keys: Keys, limits: Limits, local: bool) -> None:
        self._app, self._keys, self._limits, self._local = app, keys, limits, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_names(Headers(scope=scope))
            scope["morfi.role"] = self._role(scope)
            body = await self._read(Headers(scope=scope), receive)
        except ClientDisconnect:
            return
        except Refused as refused:
            await answer_refusal(refused, scope, send)
            return
        with contextlib.ExitStack() as cleanup:
            scope["morfi.cleanup"] = cleanup
            # A client that went away, or does not read, wants no answer.
            with contextlib.suppress(ClientDisconnect):
                await self._app(scope, _replayed(body, receive), self._impatient(send))

    def _check_names(self, headers: Headers) -> None:
        """Other sites' pages can send requests here from a visitor's browser, even under their own names."""
        host = headers.get("host", "")
        if self._local and urlsplit(f"//{host}").hostname not in _LOCAL_NAMES:
            raise Refused(403, "host", "this server answers to localhost and 127.0.0.1 only")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Refused(403, "origin", "pages of other sites may not use this server")

    def _role(self, scope: Scope) -> str:
        role = self._keys.role(Headers(scope=scope).get("authorization"))
        if role is None:
            if scope["path"] in WITHOUT_KEY:
                return "nobody"
            raise Refused(401, "key", "a key is needed: Authorization: Bearer KEY")
        return role

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body; raises Refused for one that is too large or comes too slowly."""
        limit = self._limits.max_body_bytes
        too_large = Refused(413, "body", f"a request has at most {limit} bytes")
        said = headers.get("content-length", "")
        if said.isdecimal() and int(said) > limit * _DISCARDED:
            raise too_large
        parts, n, more = [], 0, True
        try:
            async with asyncio.timeout(self._limits.read_s):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    part, more = message.get("body", b""), message.get("more_body", False)
                    n += len(part)
                    if n <= limit:
                        parts.append(part)
                    if n > limit * _DISCARDED:
                        break
        except TimeoutError as error:
            raise Refused(
                408, "slow", f"the request did not arrive within {self._limits.read_s:g} s"
            ) from error
        if n > limit:
            raise too_large
        return b"".join(parts)

    def _impatient(self, send: Send) -> Send:
        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._limits.stall_s):
                    await send(message)
            except TimeoutError as error:
                raise ClientDisconnect from error

        return send_in_time


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body at once, then whatever comes after it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def error_object(message: str, kind: str, status: int, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients expect it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}


def refusal_headers(refused: Refused) -> dict[str, str]:
    """The headers that go with a refusal."""
    found = {}
    if refused.retry_after_s:
        found["retry-after"] = str(refused.retry_after_s)
    if refused.status == 401:
        found["www-authenticate"] = "Bearer"
    if refused.status in (408, 413):
        found["connection"] = "close"
    return found


async def answer_refusal(refused: Refused, scope: Scope, send: Send) -> None:
    """Sends a refusal as the whole answer, and counts it."""
    REFUSED.labels(refused.reason).inc()
    content = json.dumps(error_object(str(refused), refused.reason, refused.status, refused.param)).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(content)),
        **refusal_headers(refused),
    }
    start = {
        "type": "http.response.start",
        "status": refused.status,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await send(start)
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})
