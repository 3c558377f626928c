"""The routes of the interface that the page uses."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from fake_api.api import FakeApi, Refused
from fake_api.comparison import runs_of, stream
from fake_api.contents import (
    D_SAE,
    FIND_RUN,
    LEVELS,
    MAX_STRENGTHS,
    MEDIAN_NORM,
    OTHER_SAE,
    POSITIONS,
    SAE,
    VECTORS,
)
from morfi.engine.operations import OPERATIONS
from morfi.serve.http.shown import OperationShown

CSP = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


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

    @app.get("/v1/morfi/capabilities")
    async def capabilities(request: Request) -> Response:
        await api.check(request)
        return JSONResponse(_capabilities(api))

    _add_latents(app, api)
    _add_questions(app, api)
    _add_checkpoints(app, api)

    @app.post("/v1/morfi/compare")
    async def compare(request: Request) -> Response:
        await api.check(request)
        body = await request.json()
        runs = runs_of(api, body)
        accepted = api.accepted(body.get("question", ""))
        return StreamingResponse(stream(api, runs, accepted), media_type="text/event-stream")

    return app


def _add_latents(app: FastAPI, api: FakeApi) -> None:
    @app.get("/v1/morfi/latents")
    async def latents(request: Request) -> Response:
        await api.check(request)
        query = request.query_params
        wanted = _choice(query, "direction", ("any", "rising", "falling"))
        selected = query.get("selected", "any")
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
        row = api.latent(latent_id)
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
        found: dict[str, Any] = {
            "checkpoint": api.served,
            "levels": list(LEVELS),
            "neighbours": near,
            "top_questions": top,
        }
        found |= {"sae": SAE, "find_run": FIND_RUN}
        found |= {
            "promoted": [{"token_id": 1, "token": " Par\n", "logit": 0.5}],
            "suppressed": [{"token_id": 2, "token": api.text("no"), "logit": -0.5}],
            "quantile_questions": [top[5] | {"id": "other", "quantile": 0.5}],
            "density": {"n_questions": 40, "n_firing": 9, "edges": [0, 1, 2], "counts": [6, 3]},
        }
        if request.query_params.get("sae") != SAE:
            near = [
                {"id": one["id"], "cosine": one["cosine"], "direction": "none", "selected": False}
                for one in near
            ]
            found |= {"sae": OTHER_SAE, "find_run": None, "neighbours": near, "top_questions": []}
            found |= {"quantile_questions": [], "density": None}
            row = {"id": row["id"], "direction": "none", "selected": False, "means": []}
        return JSONResponse(row | found)


def _add_questions(app: FastAPI, api: FakeApi) -> None:
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


def _capabilities(api: FakeApi) -> dict[str, Any]:
    limits = {
        "max_alpha": api.max_alpha,
        "large_alpha": 2.0,
        "max_latents": 8,
        "max_requests_in_flight": 64,
        "max_body_bytes": 1 << 20,
        "max_vectors": 64,
        "max_strengths": MAX_STRENGTHS,
        "max_activation_tokens": 1024,
        "max_named_vectors": 256,
    }
    return {
        "model": api.text("smollm2"),
        "checkpoint": api.served,
        "n_layers": 30,
        "d_model": 576,
        "saes": [_sae(SAE, 25, [FIND_RUN]), *([_sae(OTHER_SAE, 12, [])] if api.has_more else [])],
        "vectors": [{"name": one, "sha256": "0", "length": 3.5} for one in VECTORS if api.has_more],
        "find_runs": [_find_run(api)],
        "vector_operations": ["add", "project"],
        "operation_words": [OperationShown.of(one).model_dump() for one in OPERATIONS.values()],
        "positions": list(POSITIONS),
        "turns": [],
        "prompt": "Q: {question}\nA:",
        "chat": False,
        "limits": limits,
        "needs_key": bool(api.user_key),
        "can_load": api.can_load and (not api.user_key or api.keys_seen[-1] == api.admin_key),
    }


def _sae(name: str, layer: int, find_runs: list[str]) -> dict[str, Any]:
    return {
        "name": name,
        "layer": layer,
        "d_sae": D_SAE,
        "operations": list(OPERATIONS),
        "median_norm": MEDIAN_NORM,
        "norm_from": "measured",
        "find_runs": find_runs,
    }


def _find_run(api: FakeApi) -> dict[str, Any]:
    return {
        "id": FIND_RUN,
        "sae": SAE,
        "layer": 25,
        "levels": list(LEVELS),
        "order": {"name": "share of Unknown in training", "unit": "%", "is_level": True},
        "trends": {
            "n_selected": sum(row["selected"] for row in api.latents),
            "n_firing": 300,
            "expected_false": 300 * 0.000397,
            "is_descriptive": False,
            "false_discoveries": [{"s": 21, "n_found": 48, "fdr": api.fdr}],
        },
    }


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
