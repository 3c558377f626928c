"""The page's walk, which tests/serve/page/test_page.py takes beside a fake, on the real server."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

WALK = Path(__file__).parents[1] / "page" / "page_walk.py"


def load_walk() -> Any:
    specification = importlib.util.spec_from_file_location("page_walk_over_http", WALK)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


page_walk = load_walk()


def test_the_page_works_on_the_real_server(clean: Any, chromium: str) -> None:
    with page_walk.launched(chromium) as browser:
        page = browser.new_page()
        complaints: list[str] = []
        page.on(
            "console", lambda message: complaints.append(message.text) if message.type == "error" else None
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        walked = page_walk.walk(page, f"{clean.url}/")
        assert complaints == []
    assert walked.default != walked.steered
    assert walked.n_strengths >= 8
    assert "token" in walked.applied
