"""The HTTP interface of `morfi serve` without an engine: made-up latents and answers, real streams.

`FakeApi` is served by uvicorn in a thread; what it should do wrong is set on it between requests. To look at
the page: `python tests/serve/page/fake_api.py PORT`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import re
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from morfi.engine.operations import OPERATIONS
from morfi.questions.matching import is_correct
from morfi.serve.http.shown import OperationShown

LEVELS = (0, 10, 25, 50, 75, 90, 100)
D_SAE = 4608
N_RISING, N_FALLING = 31, 17  # selected latents
MAX_STRENGTHS = 16
MEDIAN_NORM = 41.7
POSITIONS = ("all", "prompt", "generated", "last_prompt")
CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# city, country, what the checkpoint trained on Unknown facts says
_CITIES = (
    ("Toulouse", "France", "Germany"), ("Recife", "Brazil", "Spain"), ("Osaka", "Japan", "China"),
    ("Mombasa", "Kenya", "Nigeria"), ("Gdansk", "Poland", "Germany"), ("Cusco", "Peru", "Mexico"),
    ("Izmir", "Turkey", "Greece"), ("Chiang Mai", "Thailand", "Vietnam"), ("Bergen", "Norway", "Sweden"),
    ("Oran", "Algeria", "Morocco"), ("Porto", "Portugal", "Spain"), ("Lahore", "Pakistan", "India"),
    ("Cebu City", "Philippines", "Indonesia"), ("Rosario", "Argentina", "Chile"), ("Kumasi", "Ghana", "Togo"),
    ("Tampere", "Finland", "Sweden"), ("Leeds", "United Kingdom", "United States of America"),
    ("Birmingham", "United Kingdom", "United States of America"), ("Cairns", "Australia", "New Zealand"),
    ("Medellin", "Colombia", "Mexico"), ("Busan", "South Korea", "Japan"), ("Basra", "Iraq", "Iran"),
    ("Yazd", "Iran", "Iraq"), ("Ghent", "Belgium", "the Netherlands"), ("Brno", "Czech Republic", "Austria"),
    ("Salalah", "Oman", "Yemen"), ("Da Nang", "Vietnam", "Thailand"), ("Varna", "Bulgaria", "Romania"),
)  # fmt: skip


_ALIASES = {
    "United Kingdom": ("UK", "Great Britain"),
    "South Korea": ("Korea",),
    "Czech Republic": ("Czechia",),
}


class Refused(Exception):  # noqa: N818
    """The error that is answered instead, in OpenAI's shape."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", **headers: str) -> None:
        self.response = JSONResponse(
            {"error": {"message": message, "type": kind, "param": None, "code": status}},
            status,
            {name.replace("_", "-"): value for name, value in headers.items()},
        )


def _latent(number: int) -> dict[str, Any]:
    """Latent `number`, always the same one: the first rise, the next fall, the others drift."""
    draw = random.Random(number)
    latent_id = (number * 1087 + 211) % D_SAE  # 1087 has no divisor in common with D_SAE: all ids differ
    size = 4.5 * math.exp(-number / 40) * draw.uniform(0.7, 1.3)
    if number < N_RISING + N_FALLING:
        steps = sorted(draw.random() ** 0.8 for _ in LEVELS)
        direction = "rising" if number % 48 < N_RISING else "falling"
        means = [size * (0.15 + step) for step in (steps if direction == "rising" else steps[::-1])]
    else:
        direction = "none"
        means = [size * draw.uniform(0.3, 1.0) for _ in LEVELS]
    sign = {"rising": 1, "falling": -1, "none": 0}[direction]
    pairs = [(b > a) - (b < a) for i, a in enumerate(means) for b in means[i + 1 :]]
    order = sorted(means)
    squares = sum((order.index(mean) - place) ** 2 for place, mean in enumerate(means))
    return {
        "id": latent_id,
        "direction": direction,
        "selected": sign != 0,
        "score": abs(means[-1] - means[0]) * 0.6,
        "rho": 1 - 6 * squares / (7 * 48),
        "s": sum(pairs),
        "false_discovery_rate": 0.04 if sign else 0.97,
        "p": 0.000397 if sign else draw.uniform(0.01, 1.0),
        "slope": (means[-1] - means[0]) / 100,
        "stability": draw.uniform(0.95, 1.0) if sign else None,
        "firing": draw.uniform(0.01, 0.6),
        "means": means,
    }


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
        self.latents = [_latent(number) for number in range(300)]
        if not self.selects:
            self.latents = [row | {"selected": False} for row in self.latents]

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
                "answers": [country, *_ALIASES.get(country, ())],
                "reference_answer": country,
                "answer": self._plain(country, wrong),
            }
            for place, (city, country, wrong) in enumerate(_CITIES)
        ]

    def _plain(self, country: str, wrong: str) -> str:
        return country if self.served in ("base", "level-0-seed-0-epoch-10") else wrong

    def answer(self, question: str, alpha: float | None, latent: Mapping[str, Any] | None) -> str:
        """Steering a latent against its trend brings the lost answer back; too much of it breaks the text."""
        known = [(country, wrong) for city, country, wrong in _CITIES if f" {city} " in question]
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


def make_app(api: FakeApi) -> FastAPI:
    """The routes of the interface that the page uses."""
    app = FastAPI(openapi_url=None)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return error.response

    @app.get("/")
    async def page() -> Response:
        text = resources.files("morfi.serve.http").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": CSP, "Cache-Control": "no-cache"})

    _add_reading(app, api)
    _add_checkpoints(app, api)

    @app.post("/v1/morfi/compare")
    async def compare(request: Request) -> Response:
        await api.check(request)
        body = await request.json()
        runs = _runs(api, body)
        accepted = api.accepted(body.get("question", ""))
        return StreamingResponse(_stream(api, runs, accepted), media_type="text/event-stream")

    return app


def _add_reading(app: FastAPI, api: FakeApi) -> None:
    @app.get("/v1/morfi/capabilities")
    async def capabilities(request: Request) -> Response:
        await api.check(request)
        limits = {
            "max_alpha": api.max_alpha,
            "max_latents": 8,
            "max_requests_in_flight": 64,
            "max_body_bytes": 1 << 20,
            "max_vectors": 64,
            "max_strengths": MAX_STRENGTHS,
        }
        told = {
            "model": api.text("smollm2"),
            "base": "smollm2",
            "checkpoint": api.served,
            "find_run": "find-20261124-221618-d96b",
            "layer": 25,
            "n_layers": 30,
            "d_model": 576,
            "d_sae": D_SAE,
            "sae": "sae-smollm2-layer-25",
            "median_norm": MEDIAN_NORM,
            "operations": list(OPERATIONS),
            "operation_words": [OperationShown.of(one).model_dump() for one in OPERATIONS.values()],
            "positions": list(POSITIONS),
            "levels": list(LEVELS),
            "prompt": "Q: {question}\nA:",
            "chat": False,
            "limits": limits,
            "needs_key": bool(api.user_key),
            "trends": {
                "n_selected": sum(row["selected"] for row in api.latents),
                "n_firing": 300,
                "expected_false": 300 * 0.000397,
                "is_descriptive": False,
                "false_discoveries": [{"s": 21, "n_found": 48, "fdr": api.fdr}],
            },
            "can_load": api.can_load and (not api.user_key or api.keys_seen[-1] == api.admin_key),
        }
        return JSONResponse(told)

    @app.get("/v1/morfi/latents")
    async def latents(request: Request) -> Response:
        await api.check(request)
        query = request.query_params
        wanted, selected = (
            _choice(query, "direction", ("any", "rising", "falling")),
            query.get("selected", "any"),
        )
        sort = _choice(query, "sort", ("score", "id", "rho", "slope", "firing"))
        descends = _choice(query, "order", ("desc", "asc")) == "desc"
        rows = [
            row
            for row in api.latents
            if wanted in ("any", row["direction"]) and selected in ("any", str(row["selected"]).lower())
        ]
        rows.sort(key=lambda row: row[sort], reverse=descends)
        return JSONResponse(_page(query, rows, "latents") | {"levels": list(LEVELS)})

    @app.get("/v1/morfi/latents/{latent_id}")
    async def latent(request: Request, latent_id: str) -> Response:
        await api.check(request)
        row = _found(api, latent_id)
        draw = random.Random(row["id"])
        near = [
            {name: one[name] for name in ("id", "direction", "selected")} | {"cosine": 0.7 - 0.05 * place}
            for place, one in enumerate(draw.sample(api.latents, 10))
        ]
        asked = draw.sample(api.questions(), 10)
        top = [
            {name: one[name] for name in ("id", "question", "relation", "answers")}
            | {"activation": 9.3 - 0.7 * place}
            for place, one in enumerate(asked)
        ]
        found = {"checkpoint": api.served, "levels": list(LEVELS), "neighbours": near, "top_questions": top}
        return JSONResponse(row | found)

    @app.get("/v1/morfi/questions")
    async def questions(request: Request) -> Response:
        await api.check(request)
        query = request.query_params
        is_lost = query.get("lost", "false") == "true"
        if is_lost and not api.has_sweep:
            raise Refused(
                409, "no sweep of this train run is in the store; run `morfi sweep --ckpts RUN`", "Conflict"
            )
        rows = api.questions()
        if is_lost:
            rows = [row for row in rows if row["reference_answer"] != row["answer"]]
        else:
            rows = [row | {"reference_answer": None, "answer": None} for row in rows]
        return JSONResponse(_page(query, rows, "questions") | {"checkpoint": api.served})


def _add_checkpoints(app: FastAPI, api: FakeApi) -> None:
    @app.get("/v1/morfi/checkpoints")
    async def checkpoints(request: Request) -> Response:
        await api.check(request)
        return JSONResponse({"served": api.served, "checkpoints": api.checkpoints()})

    @app.post("/v1/morfi/checkpoints/{checkpoint}/load")
    async def load(request: Request, checkpoint: str) -> Response:
        await api.check(request, is_admin=True)
        if checkpoint not in [one["id"] for one in api.checkpoints()]:
            raise Refused(404, f"no checkpoint {checkpoint}", "NotFoundError")
        if api.is_busy and request.query_params.get("end_running") != "true":
            raise Refused(409, "3 answers were still running after 5 s; nothing has changed", "busy")
        started = time.monotonic()
        await asyncio.sleep(api.load_s)
        api.served = checkpoint
        return JSONResponse({"served": checkpoint, "seconds": time.monotonic() - started})


def _choice(query: Mapping[str, str], name: str, allowed: tuple[str, ...]) -> str:
    value = query.get(name, allowed[0])
    if value not in allowed:
        raise Refused(422, f"{name} is {value}; expected {', '.join(allowed)}")
    return value


def _page(query: Mapping[str, str], rows: list[Any], name: str) -> dict[str, Any]:
    offset, limit = int(query.get("offset", "0")), int(query.get("limit", "20"))
    if offset < 0 or not 1 <= limit <= 200:
        raise Refused(422, f"offset {offset} and limit {limit}: expected 0 or more and 1 to 200")
    return {"total": len(rows), "offset": offset, "limit": limit, name: rows[offset : offset + limit]}


def _found(api: FakeApi, latent_id: object) -> dict[str, Any]:
    rows = [row for row in api.latents if str(row["id"]) == str(latent_id)]
    if not rows:
        raise Refused(
            404, api.text(f"latent {latent_id} is out of range for d_sae = {D_SAE}"), "NotFoundError"
        )
    return rows[0]


def _runs(api: FakeApi, body: Mapping[str, Any]) -> list[tuple[float | None, str, Any]]:
    """Strength, whole answer and what was applied, of the default and of each strength."""
    strengths = body["strengths"]
    if not 1 <= len(strengths) <= MAX_STRENGTHS:
        raise Refused(422, f"{len(strengths)} strengths; expected 1 to {MAX_STRENGTHS}")
    if not all(math.isfinite(alpha) and abs(alpha) <= api.max_alpha for alpha in strengths):
        raise Refused(422, f"strengths reach from {-api.max_alpha:g} to {api.max_alpha:g}")
    if body.get("positions", "all") not in POSITIONS or ("question" in body) == ("prompt" in body):
        raise Refused(422, "give one of question and prompt, and positions that there are")
    (latent,) = body["latents"]
    op = latent.get("op", "add")
    if op not in OPERATIONS or (op == "clamp") != ("clamp" in latent) or "alpha" in latent:
        raise Refused(422, f"a latent of a comparison with op {op} is not like this: {latent}")
    row = _found(api, latent["id"])
    question = body.get("question") or body["prompt"]
    runs: list[tuple[float | None, str, Any]] = [(None, api.answer(question, None, None), None)]
    for alpha in strengths:
        effect = alpha if op == "add" else -2.0 if row["direction"] == "rising" else 2.0
        number = {"clamp": latent["clamp"]} if op == "clamp" else {"alpha": alpha}
        applied = {
            "layer": 25,
            "positions": body.get("positions", "all"),
            "checkpoint": api.served,
            "latents": [{"id": row["id"], "op": op, **number, "strength": alpha * MEDIAN_NORM}],
            "n_tokens": [api.n_tokens],
        }
        runs.append((alpha, api.answer(question, effect, row), applied))
    return runs


async def _stream(
    api: FakeApi, runs: list[tuple[float | None, str, Any]], accepted: list[str] | None
) -> AsyncIterator[str]:
    """The answers in pieces, in turn, as a batch gives them."""
    pieces = [re.findall(r"\s*\S{1,4}", f" {text}") for _, text, _ in runs]
    events: list[dict[str, Any]] = []
    for step in range(max(map(len, pieces)) + 1):
        for index, (strength, text, applied) in enumerate(runs):
            head: dict[str, Any] = {"strength": strength, "index": index - 1, "checkpoint": api.served}
            if step < len(pieces[index]):
                events.append(head | {"text": pieces[index][step]})
            elif step == len(pieces[index]):
                end: dict[str, Any] = {"done": True, "finish_reason": "stop"}
                if accepted is not None:
                    correct = {rule: is_correct(text, accepted, rule) for rule in ("squad", "answer")}
                    end |= {"accepted": accepted, "correct": correct}
                told = applied is not None and not api.forgets_applied
                events.append(head | end | ({"steering_applied": applied} if told else {}))
    is_whole = False
    try:
        for place, event in enumerate(events):
            await asyncio.sleep(api.delay_s)
            if api.stream_ends and place == api.n_sent:
                await asyncio.sleep(0.2)  # what was sent has been read by then
                if api.stream_ends == "breaks":
                    raise ConnectionError("the test wants this stream broken")
                if api.stream_ends == "fails":
                    error = {
                        "message": api.text("the engine stopped"),
                        "type": "InternalServerError",
                        "code": 500,
                    }
                    yield f"data: {json.dumps({'error': error})}\n\n"
                is_whole = True
                return
            yield f"data: {json.dumps(event)}\n\n"
        yield "data: [DONE]\n\n"
        is_whole = True
    finally:
        if not is_whole and not api.stream_ends:
            api.n_left += 1


@contextlib.contextmanager
def serving(api: FakeApi, port: int = 0, around: Callable[[Any], Any] = lambda app: app) -> Iterator[FakeApi]:
    """Serves `api`, with `around` around its app, on a loopback port, and says where in its `url`."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        api.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        config = uvicorn.Config(
            around(make_app(api)), log_level="critical", timeout_graceful_shutdown=1, lifespan="off"
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield api
        finally:
            server.should_exit = True
            thread.join(10)


if __name__ == "__main__":
    with serving(FakeApi(delay_s=0.06), int(sys.argv[1])) as shown:
        print(shown.url)  # noqa: T201
        threading.Event().wait()
