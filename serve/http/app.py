"""The HTTP app: vLLM's, without the routes that could answer unsteered or show files, and with morfi's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from argparse import Namespace
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

import fastapi
import starlette.exceptions
from fastapi import APIRouter, FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.routing import Route
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.prometheus import get_prometheus_registry

from morfi import __version__
from morfi.errors import InputError, MorfiError
from morfi.serve.http import activations, compare, listings, metrics, vector_routes
from morfi.serve.http.gate import Refused
from morfi.serve.http.guard import Guard, error_object, refusal_headers
from morfi.serve.http.invalid import words
from morfi.serve.http.keys import Keys
from morfi.serve.http.routes import ERRORS, router
from morfi.serve.http.sites import Sites
from morfi.serve.http.state import ServerState

MODELS = "/v1/models"
# All that is left of vLLM's own: none of them generates, and none takes or shows a path.
KEPT = frozenset({"/health", "/version", MODELS})
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_log = logging.getLogger("morfi.serve")
own_router = APIRouter()


async def make_app(
    state: ServerState, args: Namespace, keys: Keys, *, local: bool, sites: Sites | None = None
) -> FastAPI:
    """The app that serves `state`; `args` are those of vLLM's own server."""
    engine = state.engine
    tasks = await engine.get_supported_tasks()
    app: FastAPI = build_app(args, tasks, engine.model_config)
    await init_app_state(engine, app.state, args, tasks)
    kept = [route for route in app.router.routes if isinstance(route, APIRoute) and route.path in KEPT]
    # What FastAPI serves its document by is a plain route; all of vLLM's are of other kinds.
    app.router.routes[:] = [route for route in app.router.routes if type(route) is Route]
    app.title, app.version = "morfi", __version__
    app.state.morfi = state
    serving = getattr(app.state, "openai_serving_completion", None)
    state.backend = getattr(serving, "system_fingerprint", None) or state.backend
    # For the document: it is the guard that looks at the key.
    bearer = APIRouter(dependencies=[Security(HTTPBearer(auto_error=False))])
    for route in kept:
        bearer.add_api_route(
            route.path,
            _naming_the_checkpoint(route.endpoint) if route.path == MODELS else route.endpoint,
            methods=list(route.methods or ()),
            response_class=route.response_class,
            responses=ERRORS,
        )
    for room in (listings, compare, activations, vector_routes):
        bearer.include_router(room.router)
    bearer.include_router(router)
    bearer.include_router(own_router)
    app.include_router(bearer)
    _add_page(app)
    _add_error_handlers(app)
    app.middleware_stack = None  # vLLM has it built before its time; it is built anew with what follows
    app.add_middleware(Guard, keys=keys, limits=state.gate.limits, local=local, sites=sites)
    return app


def _naming_the_checkpoint(show_models: Callable[[Request], Awaitable[Response]]) -> Any:
    """vLLM's list of models, which also says what answers under the name: another after a load."""

    async def show_available_models(raw_request: Request) -> Response:
        state: ServerState = raw_request.app.state.morfi
        content = json.loads(bytes((await show_models(raw_request)).body))
        for model in content["data"]:
            model |= {"checkpoint": state.served, "checkpoint_sha256": state.served_sha256}
        return JSONResponse(content)

    return show_available_models


def _add_page(app: FastAPI) -> None:
    page = files("morfi.serve.http").joinpath("page.html").read_bytes()

    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        headers = {"content-security-policy": _PAGE_POLICY, "cache-control": "no-cache"}
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)


@own_router.get(
    "/metrics", responses=ERRORS | {200: {"content": {"text/plain": {}}}}, response_class=Response
)
async def show_metrics(raw_request: Request) -> Response:
    """vLLM's and morfi's metrics, for Prometheus."""
    await measure(raw_request.app.state.morfi)
    return Response(generate_latest(get_prometheus_registry()), media_type=CONTENT_TYPE_LATEST)


async def measure(state: ServerState) -> None:
    """Brings the gauges up to date."""
    metrics.IN_FLIGHT.set(state.gate.n_in_flight)
    metrics.VECTORS.set(state.gate.n_vectors)
    # Workers answer nothing while they load weights; the last numbers are shown then.
    with contextlib.suppress(TimeoutError, EngineDeadError):
        async with asyncio.timeout(2):
            slots = await state.engine.collective_rpc("morfi_slots")
            metrics.SLOTS.set(slots[0]["n"])
            metrics.SLOTS_USED.set(slots[0]["used"])
            metrics.FOLLOWED.set(slots[0]["followed"])


def _add_error_handlers(app: FastAPI) -> None:
    @app.exception_handler(Refused)
    async def refuse(_: Request, refused: Refused) -> Response:
        metrics.REFUSED.labels(refused.reason).inc()
        content = error_object(str(refused), refused.reason, refused.status, refused.param)
        return JSONResponse(content, refused.status, refusal_headers(refused))

    @app.exception_handler(RequestValidationError)
    async def refuse_invalid(request: Request, error: RequestValidationError) -> Response:
        metrics.REFUSED.labels("invalid").inc()
        # Never what was given: it may be NaN, which JSON cannot say, or megabytes long.
        body = getattr(request.scope.get("route"), "body_field", None)
        model = None if body is None else body.field_info.annotation
        found = [f"{_place(one['loc'])}: {words(one, one['loc'][1:], model)}" for one in error.errors()]
        lines = list(dict.fromkeys(found))[:10]  # members of a union may say the same
        param = _place(error.errors()[0]["loc"])
        return JSONResponse(error_object("; ".join(lines)[:2000], "invalid", 422, param), 422)

    @app.exception_handler(fastapi.HTTPException)
    @app.exception_handler(starlette.exceptions.HTTPException)
    async def refuse_plainly(_: Request, error: starlette.exceptions.HTTPException) -> Response:
        content = error_object(str(error.detail), "http", error.status_code)
        return JSONResponse(content, error.status_code, error.headers)

    @app.exception_handler(MorfiError)
    async def fail(_: Request, error: MorfiError) -> Response:
        _log.error("a request failed: %s", error)
        status = 422 if isinstance(error, InputError) else 500
        return JSONResponse(error_object(str(error), type(error).__name__, status), status)


def _place(loc: tuple[Any, ...]) -> str:
    # Names that pydantic adds for the members of a union are not the client's.
    own = [str(part) for part in loc[1:]]
    return ".".join(part for part in own if part != "str" and not part.startswith("list[")) or "body"
