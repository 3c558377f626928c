"""The URL of an OpenAI-compatible server, the key for it, and how long it is waited for."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from morfi.errors import InputError

KEYS = ("MORFI_API_KEY", "OPENAI_API_KEY")  # the first that is set is sent
_ROUTES = ("/chat/completions", "/completions", "/models")
_HERE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Key:
    """A key, by the variable of the environment that holds it."""

    variable: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Limits:
    """How many requests are in flight, how long one may take, and how often it is tried again."""

    concurrency: int = 32
    timeout_s: float = 120.0
    retries: int = 6
    first_pause_s: float = 0.5  # before the first retry; doubled before each one after it
    longest_pause_s: float = 30.0
    longest_wait_s: float = 300.0  # that a server may ask for (Retry-After)


def check_url(text: str) -> str:
    """The URL below which a server's routes are, without a slash at its end.

    Raises InputError for text that is no such URL, and for one that holds what should not be stored.
    """
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"--endpoint is no URL ({error}); expected http://host:8000/v1 or alike") from error
    if "@" in parts.netloc:
        raise InputError(
            "--endpoint holds a user or password, which would be stored with the run; leave it out and set "
            f"{KEYS[0]}"
        )
    if parts.query or parts.fragment or "?" in text or "#" in text:
        raise InputError(
            "--endpoint holds a query or fragment, which may be a secret and would be stored with the run; "
            f"give the URL without it, and a key in {KEYS[0]}"
        )
    if parts.scheme not in ("http", "https") or not host or not text.isprintable() or " " in text:
        raise InputError(f'--endpoint is "{text}"; expected a URL such as http://host:8000/v1')
    url = text.rstrip("/")
    for route in _ROUTES:
        if url.endswith(route):
            raise InputError(f'--endpoint is "{text}"; give {url.removesuffix(route)}, without the route')
    return url


def endpoint_key() -> Key | None:
    """The key for endpoints that the environment holds; raises InputError for one that no header can."""
    for variable in KEYS:
        if secret := os.environ.get(variable, "").strip():
            if not (secret.isascii() and secret.isprintable()) or " " in secret:
                raise InputError(f"{variable} holds no key: expected ASCII characters without blanks")
            return Key(variable, secret)
    return None


def is_open(url: str) -> bool:
    """Whether what is sent to `url` leaves this machine unencrypted."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in _HERE
