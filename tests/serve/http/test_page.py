"""The page's walk, which tests/serve/page takes beside a fake, on the real server."""

from __future__ import annotations

from typing import Any

import page_walk


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
