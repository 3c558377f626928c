"""/v1/morfi/vectors: the vectors that requests may be steered along, for an admin to add and to release."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError

from morfi.engine.directions import Direction
from morfi.errors import InputError
from morfi.serve.http.gate import Refused
from morfi.serve.http.invalid import words
from morfi.serve.http.listings import vector_shown
from morfi.serve.http.routes import ERRORS
from morfi.serve.http.shown import VectorShown
from morfi.serve.http.state import ServerState
from morfi.serve.http.unique import loads
from morfi.serve.http.vectors import checked, unpacked
from morfi.serve.http.wire import Body, Finite, VectorName

router = APIRouter(prefix="/v1/morfi/vectors", responses=ERRORS)
BYTES = ("application/octet-stream", "application/safetensors")


class Given(Body):
    """Vectors as numbers, by name."""

    vectors: dict[VectorName, Annotated[list[Finite], Field(min_length=1)]] = Field(min_length=1)


class VectorList(BaseModel):
    """Vectors of the server."""

    vectors: list[VectorShown]


_CONTENT = {
    "application/json": {"schema": Given.model_json_schema()},
    **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in BYTES},
}


@router.get("")
def vectors(raw_request: Request) -> VectorList:
    """The vectors that requests may be steered along."""
    state: ServerState = raw_request.app.state.morfi
    return VectorList(vectors=[vector_shown(one) for one in list(state.steerable.vectors.values())])


@router.post("", openapi_extra={"requestBody": {"required": True, "content": _CONTENT}})
async def add(raw_request: Request) -> VectorList:
    """Takes vectors in (admin key), all or none: as JSON, or as the bytes of a safetensors file."""
    state = _as_admin(raw_request)
    given = await _given(raw_request)
    held = state.steerable.vectors
    if taken := [name for name in given if name in held]:
        raise Refused(
            409,
            "taken",
            f'vector "{taken[0]}": the name is taken; release that one, or give another',
            param="vectors",
        )
    limit = state.gate.limits.max_named_vectors
    if len(held) + len(given) > limit:
        message = f"{len(held)} vectors are held and {len(given)} more are given; at most {limit}"
        raise Refused(409, "full", f"{message}: release some")
    try:
        made = state.steerable.add_vectors(given)
    except InputError as error:
        raise Refused(422, "vector", str(error), param="vectors") from error
    return VectorList(vectors=[vector_shown(one) for one in made])


@router.delete("/{name}")
async def release(raw_request: Request, name: Annotated[str, Path(max_length=128)]) -> VectorShown:
    """Releases a vector (admin key), on the device as well; requests that run along it end as they began."""
    state = _as_admin(raw_request)
    if name not in state.steerable.vectors:
        raise Refused(404, "vector", "there is no such vector; GET /v1/morfi/vectors lists them")
    released = vector_shown(state.steerable.vectors[name])
    if (gone := state.steerable.release_vector(name)) is not None:
        await state.engine.collective_rpc("morfi_forget", args=(gone,))
    return released


def _as_admin(raw_request: Request) -> ServerState:
    if raw_request.scope["morfi.role"] != "admin":
        raise Refused(403, "key", "changing vectors needs the admin key")
    state: ServerState = raw_request.app.state.morfi
    return state


async def _given(raw_request: Request) -> dict[str, Direction]:
    """The vectors in the body; raises Refused, or RequestValidationError for fields that are wrong."""
    data = await raw_request.body()
    kind = raw_request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    try:
        if kind in BYTES:
            return unpacked(data)
        if kind != "application/json":
            known = ", ".join(("application/json", *BYTES))
            raise Refused(422, "body", f"the content type is {kind[:80]}; expected one of {known}")
        return checked(Given.model_validate(_json(data)).vectors)
    except InputError as error:
        raise Refused(422, "vector", str(error), param="vectors") from error
    except ValidationError as error:
        found = [
            {**one, "loc": ("body", *one["loc"]), "msg": words(one, one["loc"], Given)}
            for one in error.errors(include_input=False)
        ]
        raise RequestValidationError(found) from error


def _json(data: bytes) -> Any:
    try:
        return loads(data)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "body", "the body is not JSON") from error
