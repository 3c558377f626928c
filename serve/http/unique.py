"""JSON bodies in which no key may stand twice: what counts would be settled without a word."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute

from morfi.errors import InputError
from morfi.questions.keys import unique_keys


class _UniqueKeys(Request):
    async def json(self) -> Any:
        """The body; raises HTTPException (422) where a key stands twice in an object."""
        if not hasattr(self, "_json"):
            self._json = loads(await self.body())
        return self._json


class UniqueKeysRoute(APIRoute):
    """A route whose JSON bodies `loads` reads."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, given such a request."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_UniqueKeys(request.scope, request.receive, request._send))

        return handle


def loads(data: bytes) -> Any:
    """What `json.loads` makes of `data`; raises HTTPException (422) where a key stands twice in an object."""
    try:
        return json.loads(data, object_pairs_hook=unique_keys)
    except InputError as error:
        raise HTTPException(422, str(error)) from error
