"""`morfi serve`: what it refuses before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine


@pytest.fixture
def refused(run: CommandLine, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `morfi serve`; gives its code and what it said on standard error."""
    for name in ("MORFI_API_KEY", "MORFI_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)

    def serve(*arguments: object) -> tuple[int, str]:
        ended = run("serve", "--ckpt", "M_100", "--latents", "find-1", *arguments)
        assert not ended.out
        return ended.code, ended.err

    return serve


def test_other_machines_need_a_key(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org"):
        code, said = refused("--host", host)
        assert code == 2
        assert "a key is needed" in said
        assert "MORFI_API_KEY" in said
    monkeypatch.setenv("MORFI_API_KEY", "user-key-123")
    code, said = refused("--host", "0.0.0.0")
    assert (code, "a key" in said) == (2, False)  # it got as far as the missing store
    assert "user-key-123" not in said


def test_keys_are_no_option_and_their_file_is_private(refused: Any, tmp_path: Path) -> None:
    for option in ("--api-key", "--admin-key", "--key"):
        code, said = refused(option, "user-key-123")
        assert code == 2
        assert "No such option" in said
    file = tmp_path / "keys"
    file.write_text("user user-key-123\n")
    file.chmod(0o644)
    code, said = refused("--keys", file)
    assert code == 2
    assert "can be read by others" in said
    assert "user-key-123" not in said


def test_what_is_not_there_is_named(refused: Any) -> None:
    for arguments, message in (
        (("--port", "70000"), "70000"),
        (("--allow-origin", "morfi.example"), "is not an origin"),
        (("--root-path", "tools"), "is not a path"),
        (("--trust-forwarded", "localhost"), "is not an address"),
        (("--engine", "trust_remote_code=true"), "code from a checkpoint is never run"),
        ((), "no such database"),
    ):
        code, said = refused(*arguments)
        assert code == 2
        assert message in said
