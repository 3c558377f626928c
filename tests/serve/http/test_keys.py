"""Keys: where they come from, and who is who."""

from __future__ import annotations

from pathlib import Path

import pytest

from morfi.errors import InputError
from morfi.serve.http.keys import Keys, check_reachable, is_loopback, read_keys

USER, ADMIN = "user-key-123", "admin-key-456"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_keys_come_from_the_environment_or_a_file(tmp_path: Path) -> None:
    environment = {"MORFI_API_KEY": USER, "MORFI_ADMIN_KEY": ADMIN}
    assert read_keys(None, environment) == Keys(USER, ADMIN)
    assert read_keys(None, {}) == Keys()
    file = write(tmp_path / "keys", f"# ours\n\nadmin {ADMIN}\n")
    assert read_keys(file, environment) == Keys(None, ADMIN)


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        (f"user {USER}", 0o644, "can be read by others"),
        ("", 0o600, "holds no keys"),
        (f"root {USER}", 0o600, "line 1: expected"),
        (f"user {USER}\nuser {ADMIN}", 0o600, "line 2: expected"),
        ("user short", 0o600, "is not a valid key"),
        ("user zwölf-zeichen", 0o600, "is not a valid key"),
        (f"user {USER}\nadmin {USER}", 0o600, "are the same"),
    ],
)
def test_files_that_are_not_right_are_refused_without_the_key(
    tmp_path: Path, text: str, mode: int, message: str
) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_keys(write(tmp_path / "keys", text, mode))
    assert USER not in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_keys(tmp_path / "none")


def test_roles_follow_the_key() -> None:
    keys = Keys(USER, ADMIN)
    assert keys.role(f"Bearer {USER}") == "user"
    assert keys.role(f"bearer {ADMIN} ") == "admin"
    for wrong in (None, "", "Bearer", "Bearer ", f"Basic {USER}", f"Bearer {USER}x", USER, "Bearer ключ"):
        assert keys.role(wrong) is None
    assert Keys(None, ADMIN).role("Bearer ") is None
    assert Keys(USER).role(f"Bearer {ADMIN}") is None
    assert Keys().role(None) == "admin"


def test_keys_are_not_shown() -> None:
    assert USER not in repr(Keys(USER, ADMIN))


def test_only_this_machine_needs_no_key() -> None:
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert is_loopback(host)
        check_reachable(host, Keys())
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.org", ""):
        assert not is_loopback(host)
        with pytest.raises(InputError, match="a key is needed"):
            check_reachable(host, Keys())
        check_reachable(host, Keys(USER))
