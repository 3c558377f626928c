"""--engines where it cannot be."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest


def test_without_ray_the_extra_is_named(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else found(name))
    ended = ask("--engines", 2)
    assert ended.code == 2
    assert ended.err.splitlines()[-1] == (
        "morfi: --engines needs Ray, which is not installed: pip install 'morfi[ray]'"
    )


def test_more_engines_than_cores_are_refused(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    ended = ask("--engines", 4)
    assert (ended.code, "--engines is 4; expected at most 3, the cores" in ended.err) == (2, True)


def test_a_server_has_its_own(run: Any) -> None:
    ended = run("eval", "--endpoint", "http://127.0.0.1:9", "--model", "m", "--engines", 2)
    assert (ended.code, "--engines with --endpoint: the server has its own" in ended.err) == (2, True)
