"""The state of the fake server, and the requests that it has had."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from fake_api.contents import ALIASES, CITIES, D_SAE, LEVELS, made_latent


class Refused(Exception):  # noqa: N818
    """The error that is answered instead, in OpenAI's shape."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", **headers: str) -> None:
        self.response = JSONResponse(
            {"error": {"message": message, "type": kind, "param": None, "code": status}},
            status,
            {name.replace("_", "-"): value for name, value in headers.items()},
        )


@dataclass
class FakeApi:
    """The fake server's contents, what it has been asked, and what it should do wrong."""

    user_key: str = ""
    admin_key: str = ""
    delay_s: float = 0.01  # between two pieces of an answer
    load_s: float = 0.2
    has_sweep: bool = True
    selects: bool = True  # whether the find run selected any latent
    can_load: bool = True
    has_more: bool = False  # an SAE without a find run, and vectors
    max_alpha: float = 64.0
    hostile: str = ""  # stands in all texts
    failures: dict[str, Refused] = field(default_factory=dict)  # by path
    stream_ends: str = ""  # "breaks", "stops" or "fails" after `n_sent` events
    n_sent: int = 4
    forgets_applied: bool = False
    n_tokens: int = 14  # that a steering changes
    fdr: float = 0.04
    is_busy: bool = False  # answers are in the way of a load, which does not end them
    served: str = "level-100-seed-0-epoch-10"
    requests: list[tuple[str, str, Any]] = field(default_factory=list)  # method, path and query, body
    keys_seen: list[str] = field(default_factory=list)
    n_left: int = 0  # streams that the client did not hear to the end
    url: str = ""

    def __post_init__(self) -> None:
        self.latents = [made_latent(number) for number in range(300)]
        if not self.selects:
            self.latents = [row | {"selected": False} for row in self.latents]

    def latent(self, latent_id: object) -> dict[str, Any]:
        """The latent of this number; raises Refused where there is none."""
        rows = [row for row in self.latents if str(row["id"]) == str(latent_id)]
        if not rows:
            raise Refused(
                404, self.text(f"latent {latent_id} is out of range for d_sae = {D_SAE}"), "NotFoundError"
            )
        return rows[0]

    def text(self, words: str) -> str:
        """`words`, with the hostile text after them."""
        return f"{words} {self.hostile}".strip()

    def questions(self) -> list[dict[str, Any]]:
        """All questions; of each the checkpoint served answers the third kind wrong."""
        return [
            {
                "id": f"P17-{place}",
                "question": self.text(f"Which country is {city} in?"),
                "relation": "P17",
                "answers": [country, *ALIASES.get(country, ())],
                "reference_answer": country,
                "answer": self._plain(country, wrong),
            }
            for place, (city, country, wrong) in enumerate(CITIES)
        ]

    def _plain(self, country: str, wrong: str) -> str:
        return country if self.served in ("base", "level-0-seed-0-epoch-10") else wrong

    def answer(self, question: str, alpha: float | None, latent: Mapping[str, Any] | None) -> str:
        """Steering a latent against its trend brings the lost answer back; too much of it breaks the text."""
        known = [(country, wrong) for city, country, wrong in CITIES if f" {city} " in question]
        country, wrong = known[0] if known else ("the city of somewhere", "the town of nowhere")
        if latent is None or alpha is None:
            return self.text(self._plain(country, wrong))
        against = -alpha if latent["direction"] == "rising" else alpha
        if against > 5:
            return self.text("the the the the the")
        return self.text(country if against >= 0.25 else self._plain(country, wrong))

    def accepted(self, question: str) -> list[str] | None:
        """The right answer to a question, if it is one of those listed."""
        known = [one["answers"] for one in self.questions() if one["question"] == question]
        return known[0] if known else None

    def checkpoints(self) -> list[dict[str, Any]]:
        """The base and a checkpoint of each level."""
        made = [
            {
                "id": f"level-{level}-seed-0-epoch-10",
                "name": self.text(f"M_{level}"),
                "level": level,
                "seed": 0,
                "epochs": "10",
                "accuracy": 0.95 - 0.0038 * level,
            }
            for level in LEVELS
        ]
        base = {"id": "base", "name": "base", "level": None, "seed": None, "epochs": None, "accuracy": None}
        return [base, *made]

    async def check(self, request: Request, *, is_admin: bool = False) -> None:
        """Notes a request; raises what the server would refuse it with, and what a test wants refused."""
        body = await request.body()
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        self.requests.append((request.method, target, json.loads(body) if body else None))
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        self.keys_seen.append(key)
        if self.user_key and (not key or key not in (self.user_key, self.admin_key)):
            message = "this server needs an API key: send it as Authorization: Bearer KEY"
            raise Refused(401, "that key is not known here" if key else message, "Unauthorized")
        if self.user_key and is_admin and key != self.admin_key:
            raise Refused(403, "loading a checkpoint needs the admin key", "Forbidden")
        if request.url.path in self.failures:
            raise self.failures[request.url.path]
