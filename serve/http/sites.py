"""Under which names a server may be asked, by whose pages, and what a proxy before it says of them.

Pages of other sites can send requests here from a visitor's browser, and a site that changes where its own
name leads can even do so under that name. So a server on a loopback address answers to loopback's names, and
to those of origins that were allowed; and a page may ask only where it comes from the same place.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from morfi.errors import InputError
from morfi.serve.http.gate import Refused

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_PORTS = {"http": 80, "https": 443}
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Sites:
    """The sites whose pages may use a server: only its own, and no proxy is believed, by default.

    `origins` are as browsers send them (https://morfi.example), `proxies` the addresses whose X-Forwarded
    headers are believed, `root_path` the path under which a proxy shows the server ("" or "/morfi").
    """

    origins: frozenset[str] = frozenset()
    proxies: tuple[_Network, ...] = ()
    root_path: str = ""

    def check(self, asked: Asked, *, local: bool) -> None:
        """Raises Refused for a name or a page that is not right; `local`: bound to a loopback address."""
        names = _LOCAL_NAMES | {urlsplit(origin).hostname for origin in self.origins}
        if local and _hostname(asked.host) not in names:
            raise Refused(
                403,
                "host",
                "this server answers to localhost and 127.0.0.1 only; behind a proxy, start morfi serve with "
                "--allow-origin and the address that browsers show (https://morfi.example)",
            )
        if asked.origin is not None and not self.allows(asked.origin) and not asked.is_same_place:
            raise Refused(
                403,
                "origin",
                "pages of other sites may not use this server; --allow-origin of morfi serve allows one, and "
                "is needed behind a proxy that changes the Host header",
            )

    def allows(self, origin: str) -> bool:
        """Whether pages of an origin may use the server wherever it is."""
        return _plain(origin) in self.origins

    def asked(self, scope: Mapping[str, Any], headers: Mapping[str, str]) -> Asked:
        """How a request asks for the server, as a proxy tells it that is believed."""
        client = scope.get("client")
        address = client[0] if client else None
        found = Asked(headers.get("host", ""), None, headers.get("origin"), address)
        if address is None or not self._believes(address):
            return found
        # The proxy that is believed has written the last of several.
        said = {name: _last(headers.get(f"x-forwarded-{name}", "")) for name in ("host", "proto", "for")}
        return Asked(
            said["host"] or found.host, said["proto"] or None, found.origin, said["for"] or found.address
        )

    def _believes(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False  # a socket without an address
        return any(found in network for network in self.proxies)

    def placed(self, scope: dict[str, Any]) -> dict[str, Any]:
        """The request with the path that the app knows; a proxy may have taken the root path off or not."""
        if not self.root_path:
            return scope
        inner = scope["path"]
        if inner.startswith(f"{self.root_path}/"):
            inner = inner.removeprefix(self.root_path)
        path = self.root_path + inner
        return {**scope, "path": path, "raw_path": quote(path).encode(), "root_path": self.root_path}


@dataclass(frozen=True, slots=True)
class Asked:
    """Host and, where it is known, scheme of the server's address in the browser; page, and client."""

    host: str
    scheme: str | None
    origin: str | None
    address: str | None

    @property
    def is_same_place(self) -> bool:
        """Whether the page that asks comes from this server itself."""
        origin = self.origin or ""
        page = _plain(origin)
        if page is None:
            return False  # "null" is the origin of pages that have none
        if self.scheme is None:
            return urlsplit(origin).netloc.lower() == self.host.lower()
        return page == _plain(f"{self.scheme}://{self.host}")


def read_sites(origins: Collection[str], proxies: Collection[str], root_path: str) -> Sites:
    """The sites of `morfi serve`'s options; raises InputError for what is not an origin, address or path."""
    path = root_path.rstrip("/")
    if path and (not path.startswith("/") or "//" in path or set(path) & set("?#%\\ ")):
        raise InputError(f'--root-path "{root_path}" is not a path; expected one such as /morfi')
    return Sites(frozenset(_origin(one) for one in origins), tuple(_network(one) for one in proxies), path)


def _origin(text: str) -> str:
    found = _plain(text)
    if found is None:
        raise InputError(
            f'--allow-origin "{text}" is not an origin; expected scheme, name and port as browsers show '
            "them, such as https://morfi.example or http://localhost:3000"
        )
    return found


def _network(text: str) -> _Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise InputError(
            f'--trust-forwarded "{text}" is not an address: {error}; '
            "expected one such as 127.0.0.1 or 10.0.0.0/8"
        ) from error


def _plain(origin: str) -> str | None:
    """An origin in small letters and without the port that its scheme implies; None for what is none."""
    try:
        parts = urlsplit(origin.strip().rstrip("/"))
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not parts.hostname or parts.path or parts.query or parts.username:
        return None
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{name}" + (f":{port}" if port not in (None, _PORTS[parts.scheme]) else "")


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _last(values: str) -> str:
    return values.rsplit(",", 1)[-1].strip()
