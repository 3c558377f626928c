"""What --endpoint may be, and where the key comes from."""

from __future__ import annotations

import pytest

from morfi.endpoint.address import check_url, endpoint_key, is_open
from morfi.errors import InputError


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://host:8000/v1", "http://host:8000/v1"),
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_a_url_is_taken_without_the_slash_at_its_end(given: str, url: str) -> None:
    assert check_url(given) == url


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "expected a URL"),
        ("host:8000/v1", "expected a URL"),
        ("ftp://host/v1", "expected a URL"),
        ("http:///v1", "expected a URL"),
        ("http://ho st/v1", "expected a URL"),
        ("http://host/v1\r\nX: y", "expected a URL"),
        ("http://host:port/v1", "is no URL"),
        ("http://host:99999/v1", "is no URL"),
        ("http://[::1/v1", "is no URL"),
        ("http://user:hunter2@host/v1", "user or password.*MORFI_API_KEY"),
        ("http://hunter2@host/v1", "user or password"),
        ("http://host/v1?key=hunter2", "query or fragment.*MORFI_API_KEY"),
        ("http://host/v1#hunter2", "query or fragment"),
        ("http://host/v1/completions", "give http://host/v1, without the route"),
        ("http://host/v1/chat/completions", "give http://host/v1, without the route"),
    ],
)
def test_what_is_no_such_url_or_holds_a_secret_is_refused_and_the_secret_not_said(
    given: str, said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        check_url(given)
    assert "hunter2" not in str(caught.value)


def test_the_key_is_the_first_of_two_variables_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MORFI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert endpoint_key() is None
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    monkeypatch.setenv("MORFI_API_KEY", " ")
    key = endpoint_key()
    assert key is not None
    assert (key.variable, key.secret) == ("OPENAI_API_KEY", "theirs")
    assert "theirs" not in repr(key)
    monkeypatch.setenv("MORFI_API_KEY", "ours")
    key = endpoint_key()
    assert key is not None
    assert (key.variable, key.secret) == ("MORFI_API_KEY", "ours")
    for bad in ("two words", "ключ", "a\nb"):
        monkeypatch.setenv("MORFI_API_KEY", bad)
        with pytest.raises(InputError, match="MORFI_API_KEY holds no key") as caught:
            endpoint_key()
        assert bad not in str(caught.value)


def test_only_plain_http_to_another_machine_is_open() -> None:
    assert is_open("http://host:8000/v1")
    assert not is_open("https://host/v1")
    assert not is_open("http://127.0.0.1:8000/v1")
    assert not is_open("http://[::1]:8000/v1")
