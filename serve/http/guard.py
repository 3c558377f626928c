"""Checks that every HTTP request passes before any route sees it: address, key, size, and time to arrive."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from morfi.serve.http.gate import Limits, Refused
from morfi.serve.http.keys import Keys
from morfi.serve.http.metrics import REFUSED
from morfi.serve.http.sites import Sites

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

WITHOUT_KEY = frozenset({"/", "/health"})
_PREFLIGHT_S = 600  # for which a browser may remember that a page may ask
_DISCARDED = 16  # so many bodies' worth of a too large one is read, so that the client can read the answer


class Guard:
    """ASGI middleware around the whole server. `local`: bound to loopback, so that only its names are right.

    Puts "morfi.role" ("user" or "admin") and "morfi.cleanup" (an ExitStack closed when the request is over)
    into the scope, and the path and client that a proxy before the server means.
    """

    def __init__(
        self, app: App, *, keys: Keys, limits: Limits, local: bool, sites: Sites | None = None
    ) -> None:
        self._app, self._keys, self._limits, self._local = app, keys, limits, local
        self._sites = sites or Sites()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, sites = Headers(scope=scope), self._sites
        asked = sites.asked(scope, headers)
        if asked.origin is not None and sites.allows(asked.origin):
            send = _allowing(asked.origin, send)
        try:
            sites.check(asked, local=self._local)
            if await _answered_before(scope, headers, sites, send):
                return
            if asked.address is not None and scope.get("client"):
                scope["client"] = (asked.address, scope["client"][1])
            scope = sites.placed(dict(scope))
            scope["morfi.role"] = self._role(scope)
            body = await self._read(headers, receive)
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

    def _role(self, scope: Scope) -> str:
        role = self._keys.role(Headers(scope=scope).get("authorization"))
        if role is None:
            if scope["path"].removeprefix(self._sites.root_path) in WITHOUT_KEY:
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


async def _answered_before(scope: Scope, headers: Headers, sites: Sites, send: Send) -> bool:
    """Answers what needs no key: whether a page may ask, and where the page is; whether it was that."""
    origin = headers.get("origin")
    found: dict[str, str] | None = None
    if scope["method"] == "OPTIONS" and origin is not None and sites.allows(origin):
        found = {
            "access-control-allow-methods": "GET, POST, DELETE",
            "access-control-allow-headers": headers.get("access-control-request-headers", ""),
            "access-control-max-age": str(_PREFLIGHT_S),
        }
        if "access-control-request-private-network" in headers:
            found["access-control-allow-private-network"] = "true"
    elif sites.root_path and scope["path"] == sites.root_path:
        # The page's own addresses are relative to the folder that it is in.
        found = {"location": f"{sites.root_path}/"}
    if found is None:
        return False
    status = 307 if "location" in found else 204
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in found.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": b""})
    return True


def _allowing(origin: str, send: Send) -> Send:
    """Sends what a browser wants to see before a page of another origin may read an answer."""
    own = {
        "access-control-allow-origin": origin,
        "access-control-expose-headers": "retry-after",
        "vary": "origin",
    }

    async def send_allowed(message: Message) -> None:
        if message["type"] == "http.response.start":
            pairs = [(name.encode(), value.encode("latin-1")) for name, value in own.items()]
            message = {**message, "headers": [*message.get("headers", []), *pairs]}
        await send(message)

    return send_allowed


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
