"""Access: Bearer keys from the environment or a file, never from a command line."""

from __future__ import annotations

import hmac
import ipaddress
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from morfi.errors import InputError

_VARIABLES = {"user": "MORFI_API_KEY", "admin": "MORFI_ADMIN_KEY"}
_SHORTEST = 8


@dataclass(frozen=True, slots=True)
class Keys:
    """The user's and the admin's key; without any, everybody who can reach the server may do everything."""

    user: str | None = field(default=None, repr=False)
    admin: str | None = field(default=None, repr=False)

    @property
    def needed(self) -> bool:
        """Whether requests must carry a key."""
        return self.user is not None or self.admin is not None

    def role(self, authorization: str | None) -> str | None:
        """ "admin" or "user" for the value of an Authorization header, None for a wrong or missing key."""
        if not self.needed:
            return "admin"
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        found = None
        # Both are compared, always, so that the time taken tells nothing.
        for role, key in (("user", self.user), ("admin", self.admin)):
            if hmac.compare_digest(given.strip().encode(), (key or "").encode()) and key is not None:
                found = role
        return found


def read_keys(file: Path | None, environment: Mapping[str, str] = os.environ) -> Keys:
    """The keys in `file`, lines of "user KEY" and "admin KEY", else those of the environment.

    Raises InputError for a file that others can read, that says anything else, and for keys too short.
    """
    if file is None:
        found = {role: environment[name] for role, name in _VARIABLES.items() if environment.get(name)}
        source = "the environment"
    else:
        found, source = _from_file(file), str(file)
        if not found:
            raise InputError(f'{file} holds no keys; expected lines "user KEY" and "admin KEY"')
    for role, key in found.items():
        if len(key) < _SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
            raise InputError(
                f"the {role} key in {source} is not a valid key: expected at least {_SHORTEST} printable "
                "ASCII characters without blanks"
            )
    if len(set(found.values())) < len(found):
        raise InputError(f"user and admin key in {source} are the same; give two")
    return Keys(**found)


def check_reachable(host: str, keys: Keys) -> None:
    """Raises InputError for an address that others can reach while nobody needs a key."""
    if not keys.needed and not is_loopback(host):
        raise InputError(
            f"--host {host} can be reached from other machines, so a key is needed: set {_VARIABLES['user']} "
            f"and {_VARIABLES['admin']} in the environment, or give --keys FILE"
        )


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _from_file(file: Path) -> dict[str, str]:
    try:
        mode = file.stat().st_mode
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--keys {file} cannot be read: {reason}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise InputError(f"--keys {file} can be read by others; chmod 600 {file}")
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or words[0] not in _VARIABLES or words[0] in found:
            raise InputError(f'{file}, line {number}: expected "user KEY" or "admin KEY", each once')
        found[words[0]] = words[1]
    return found
