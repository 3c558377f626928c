"""How a server of an endpoint can fail in the middle of a run, and what is then said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripted_server import MODEL, Reply


def choices(*changes: Mapping[str, Any], n_sent: int | None = None) -> Reply:
    """An answer with these choices, or its beginning."""
    plain = {"index": 0, "finish_reason": "stop", "text": " x"}
    return Reply({"model": MODEL, "choices": [plain | dict(one) for one in changes]}, n_sent=n_sent)


FAULTS: Mapping[str, tuple[Reply, str]] = {
    "gone": (Reply({}, n_sent=0), "broke its answer off"),
    "slow": (Reply({}, pause_s=0.5), "did not answer within 0.3 s"),
    "a page": (Reply(b"<html>Welcome</html>"), "answered with no JSON: <html>Welcome"),
    "broken JSON": (Reply(b"{", headers={"Content-Type": "application/json"}), "JSON that is broken"),
    "cut": (choices({}, n_sent=20), "broke its answer off"),
    "no fields": (Reply({}), "model: Field required"),
    "key refused": (Reply({"error": {"message": "expired"}}, 401), r"asks for a key \(401: expired\)"),
    "forbidden": (Reply({"error": {"message": "no"}}, 403), "403: no"),
    "no model": (Reply({"error": {"message": "gone"}}, 404), r"is not there \(404: gone\)"),
    "busy": (Reply({"error": "busy"}, 429, {"Retry-After": "0"}), r"answered with 429: busy \(asked once\)"),
    "for long": (Reply({"error": "busy"}, 429, {"Retry-After": "999"}), "asks to wait for 999 s"),
    "broken": (Reply({"error": "oh"}, 500), "answered with 500: oh"),
    "elsewhere": (Reply({}, 307, {"Location": "http://example.com/v1"}), "on to http://example.com"),
    "other model": (Reply({"model": "tiny-2", "choices": []}), '"tiny-2" answered, where "tiny" was asked'),
    "no choice": (choices(), "0 choices"),
    "two choices": (choices({}, {}), "2 choices"),
    "empty choice": (choices({"text": None}), "holds no text"),
    "filtered": (choices({"finish_reason": "content_filter"}), "content_filter"),
    "unfinished": (choices({"finish_reason": None}), "has no finish_reason"),
}
