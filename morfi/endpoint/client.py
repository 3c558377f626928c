"""Requests to one server as JSON: tried again where that may help, else an error in one line.

Nothing that is said holds the key, whatever the server answers.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import ssl
import time
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import urlsplit

import httpx

from morfi.endpoint.address import KEYS, Key, Limits
from morfi.errors import InputError, MorfiError, reason_of

_AGAIN = frozenset({408, 409, 425, 429})  # and 5xx: a later request may be answered
_LONGEST_SAID = 200  # characters of what a server says


class _AgainError(Exception):
    """What failed may succeed later, after `wait_s` where the server says so."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class NoRouteError(InputError):
    """The server has nothing at this path, or no model of this name."""


class Client:
    """Connections to the server at `url`, which live in one event loop."""

    def __init__(self, url: str, key: Key | None, limits: Limits) -> None:
        self._url = url
        self._key = key
        self._limits = limits
        headers = {"User-Agent": "morfi", "Accept": "application/json"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key.secret}"
        pool = httpx.Limits(max_connections=limits.concurrency, max_keepalive_connections=limits.concurrency)
        self._http = httpx.AsyncClient(headers=headers, limits=pool, timeout=limits.timeout_s)
        self._free_at = 0.0  # when the server wants to be asked again (`time.monotonic`)

    async def close(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def ask(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object with which the server answers: a POST with a `body`, else a GET.

        Raises InputError where the server refuses the request, and MorfiError where it does not answer, or
        with something else, as often as `Limits.retries` says.
        """
        n_tried = 0
        while True:
            await asyncio.sleep(max(0.0, self._free_at - time.monotonic()))
            try:
                return await self._try(path, body)
            except _AgainError as error:
                n_tried += 1
                await asyncio.sleep(self._pause(error, n_tried))

    def _pause(self, error: _AgainError, n_tried: int) -> float:
        """The seconds until the next try; raises MorfiError where there is to be none."""
        limits, asked = self._limits, error.wait_s
        if asked is not None and asked > limits.longest_wait_s:
            raise MorfiError(f"{self._url} {error}; it asks to wait for {asked:.0f} s") from error
        if n_tried > limits.retries:
            times = "once" if n_tried == 1 else f"{n_tried} times"
            raise MorfiError(f"{self._url} {error} (asked {times})") from error
        if asked is not None:
            self._free_at = max(self._free_at, time.monotonic() + asked)  # for all requests
        pause = min(limits.first_pause_s * 2 ** (n_tried - 1), limits.longest_pause_s)
        return float(pause * random.uniform(0.5, 1.0))  # noqa: S311 - lest all come back at once

    async def _try(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        method = "GET" if body is None else "POST"
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                response = await self._http.request(method, f"{self._url}{path}", json=body)
        except TimeoutError as error:
            raise _AgainError(f"did not answer within {self._limits.timeout_s:g} s") from error
        except httpx.TransportError as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError) or "CERTIFICATE" in str(error):
                raise MorfiError(f"{self._url}: {self._shown(str(error))}") from error
            raise _AgainError(_transport(error)) from error
        except (httpx.InvalidURL, httpx.HTTPError) as error:
            raise MorfiError(f"{self._url}: {self._shown(reason_of(error))}") from error
        if response.status_code != 200:
            self._refused(response, path)
        return self._object(response)

    def _object(self, response: httpx.Response) -> dict[str, Any]:
        try:
            found = response.json()
        except (ValueError, RecursionError) as error:
            is_json = "json" in response.headers.get("Content-Type", "")
            if is_json:  # broken off, where the server does not say how long its answer is
                raise _AgainError("answered with JSON that is broken") from error
            raise MorfiError(
                f"{self._url} answered with no JSON: {self._said(response)}; give --endpoint the URL of an "
                "OpenAI-compatible server, which mostly ends with /v1"
            ) from error
        if not isinstance(found, dict):
            raise MorfiError(f"{self._url} answered with JSON that is no object: {self._said(response)}")
        return found

    def _refused(self, response: httpx.Response, path: str) -> NoReturn:
        code = response.status_code
        where, said = f"{self._url}{path}", self._said(response)
        if code in _AGAIN or code >= 500:
            raise _AgainError(f"answered with {code}: {said}", _retry_after(response))
        if code in (401, 403):
            if self._key is None:
                raise InputError(f"{where} asks for a key ({code}: {said}); set {' or '.join(KEYS)}")
            raise InputError(f"{where} refuses the key in {self._key.variable} ({code}: {said})")
        if 300 <= code < 400:
            to = urlsplit(response.headers.get("Location", ""))
            place = f"{to.scheme}://{to.hostname}" if to.hostname else "another place"
            raise InputError(
                f"{where} sends requests on to {self._shown(place)} ({code}), which is not followed with "
                "questions and a key; give --endpoint the URL that answers"
            )
        if code == 404:
            raise NoRouteError(
                f"{where} is not there (404: {said}); see that --endpoint ends as it should (/v1), and that "
                "the server has the --model"
            )
        kind = InputError if 400 <= code < 500 else MorfiError
        raise kind(f"{where} answered with {code}: {said}")

    def _said(self, response: httpx.Response) -> str:
        """What a server says of an error, in one line."""
        try:
            found = json.loads(response.content)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            error = found.get("error", found.get("detail", found.get("message")))
            found = error.get("message", error) if isinstance(error, dict) else error
        text = found if isinstance(found, str) and found.strip() else response.text
        return self._shown(text) or "nothing"

    def _shown(self, text: str) -> str:
        if self._key is not None:
            text = text.replace(self._key.secret, "***")
        line = "".join(one if one.isprintable() else " " for one in text)
        line = " ".join(line.split())
        return line if len(line) <= _LONGEST_SAID else f"{line[:_LONGEST_SAID]}…"


def _transport(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.ConnectError):
        return f"cannot be reached: {reason_of(error)}"
    if isinstance(error, httpx.RemoteProtocolError):
        return f"broke its answer off: {reason_of(error)}"
    return f"cannot be talked to: {reason_of(error)}"


def _retry_after(response: httpx.Response) -> float | None:
    """The seconds that the server asks to wait: given as such, or as a date."""
    text = response.headers.get("Retry-After", "").strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if seconds == seconds else None  # noqa: PLR0124 - not for NaN
