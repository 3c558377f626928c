"""/v1/morfi: what is served, its latents, questions to try, and other checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request

from morfi.conditions.condition import BASE
from morfi.conditions.levels import EPOCHS
from morfi.engine.operations import OPERATIONS
from morfi.engine.steering import NAMED_POSITIONS
from morfi.errors import InputError
from morfi.questions.prompts import ASKED
from morfi.questions.question import Question
from morfi.serve.http.catalog import Catalog, shown
from morfi.serve.http.gate import Refused
from morfi.serve.http.questions import captured_questions, known_accuracies, lost_questions
from morfi.serve.http.routes import ERRORS
from morfi.serve.http.shown import (
    Capabilities,
    CheckpointList,
    CheckpointShown,
    DensityShown,
    FalseDiscoveriesShown,
    FindRunShown,
    LatentDetails,
    LatentPage,
    LatentRow,
    LimitsShown,
    Loaded,
    NeighbourRow,
    OperationShown,
    OrderShown,
    QuantileQuestionRow,
    QuestionPage,
    QuestionRow,
    SaeShown,
    TokenEffectRow,
    TopQuestionRow,
    TrendsShown,
    VectorShown,
)
from morfi.serve.http.state import ServerState
from morfi.serve.http.steerable import ServedSae, ServedVector
from morfi.serve.http.turns import TURNS

router = APIRouter(prefix="/v1/morfi", responses=ERRORS)
Limit = Annotated[int, Query(ge=1, le=200)]
Offset = Annotated[int, Query(ge=0, lt=1 << 31)]
LatentPath = Annotated[int, Path(ge=0, lt=1 << 31)]
Direction = Literal["rising", "falling", "any"]
Selected = Literal["true", "false", "any"]
Sort = Literal["score", "id", "rho", "slope", "firing"]


Run = Annotated[str | None, Query(description="A find run; may be left out where there is one.")]
SaeName = Annotated[str | None, Query(description="An SAE's name; may be left out where there is one.")]


# Plain functions: they run in threads, so that they hold up no stream.


@router.get("/capabilities")
def capabilities(raw_request: Request) -> Capabilities:
    """The served model, and what may be asked of it."""
    state = _state(raw_request)
    limits, steerable = state.gate.limits, state.steerable
    chat = bool(getattr(state.tokenizer, "chat_template", None))
    possible = {name for one in steerable.saes.values() for name in one.operations}
    possible |= set(steerable.vector_operations)
    words = [OperationShown.of(one) for one in OPERATIONS.values() if one.name in possible]
    return Capabilities(
        model=state.model,
        checkpoint=state.served,
        n_layers=steerable.n_layers,
        d_model=steerable.d_model,
        saes=[_sae(state, one) for one in steerable.saes.values()],
        vectors=[vector_shown(one) for one in list(steerable.vectors.values())],
        find_runs=[_find_run(one) for one in state.catalogs.values()],
        vector_operations=list(steerable.vector_operations),
        operation_words=words,
        positions=list(NAMED_POSITIONS),
        turns=list(TURNS) if chat else [],
        prompt=ASKED,
        chat=chat,
        limits=LimitsShown(**{name: getattr(limits, name) for name in LimitsShown.model_fields}),
        needs_key=state.needs_key,
        can_load=raw_request.scope["morfi.role"] == "admin" and state.can_load,
    )


@router.get("/latents")
def latents(
    *,
    raw_request: Request,
    find_run: Run = None,
    direction: Direction = "any",
    selected: Selected = "any",
    sort: Sort = "score",
    order: Literal["desc", "asc"] = "desc",
    limit: Limit = 20,
    offset: Offset = 0,
) -> LatentPage:
    """The latents of a find run, filtered and sorted."""
    catalog = _catalog(_state(raw_request), find_run)
    chosen = None if selected == "any" else selected == "true"
    table = catalog.latents(direction=direction, selected=chosen, sort=sort, descending=order == "desc")
    rows = [LatentRow(**catalog.with_chance(row)) for row in shown(table.slice(offset, limit))]
    return LatentPage(
        find_run=catalog.run_id,
        total=len(table),
        offset=offset,
        limit=limit,
        levels=catalog.levels,
        latents=rows,
    )


@router.get("/latents/{latent}")
def latent_details(
    raw_request: Request, latent: LatentPath, sae: SaeName = None, find_run: Run = None
) -> LatentDetails:
    """One latent: its decoder's neighbours, and where there is a find run its trend and questions."""
    state = _state(raw_request)
    served, sha256 = state.served, state.served_sha256
    own, catalog = _of_latent(state, sae, find_run)
    if latent >= own.d_sae:
        raise Refused(404, "latent", f"latent {latent}: there are the latents 0 to {own.d_sae - 1}")
    neighbours = own.neighbours(latent)
    effects = state.unembedding.effects(own.unit(latent))
    known: dict[str, Any] = {
        "checkpoint": served,
        "sae": own.name,
        "promoted": [TokenEffectRow(**asdict(one)) for one in effects.promoted],
        "suppressed": [TokenEffectRow(**asdict(one)) for one in effects.suppressed],
    }
    if catalog is None:
        alone = [NeighbourRow(id=one.latent, cosine=one.cosine) for one in neighbours]
        return LatentDetails(id=latent, find_run=None, levels=[], neighbours=alone, **known)
    row, *others = catalog.rows([latent, *(one.latent for one in neighbours)])
    firing = catalog.firing(latent, sha256)
    return LatentDetails(
        **catalog.with_chance(row),
        **known,
        find_run=catalog.run_id,
        levels=catalog.levels,
        neighbours=[
            NeighbourRow(
                id=one.latent, cosine=one.cosine, direction=other["direction"], selected=other["selected"]
            )
            for one, other in zip(neighbours, others, strict=True)
        ],
        top_questions=[
            TopQuestionRow(**_question(one.question), activation=one.activation) for one in firing.top
        ],
        quantile_questions=[
            QuantileQuestionRow(**_question(one.question), activation=one.activation, quantile=one.quantile)
            for one in firing.at_quantiles
        ],
        density=DensityShown(**asdict(firing.density)),
    )


@router.get("/questions")
def questions(
    raw_request: Request, find_run: Run = None, lost: bool = False, limit: Limit = 20, offset: Offset = 0
) -> QuestionPage:
    """Questions to try; with `lost` those that M_0 answered right in a sweep and the served one wrong.

    Without a find run there are none.
    """
    state = _state(raw_request)
    served = state.served
    if not state.catalogs and not lost:
        return QuestionPage(checkpoint=served, total=0, offset=offset, limit=limit, questions=[])
    catalog = _catalog(state, find_run)
    try:
        found = lost_questions(catalog, served) if lost else captured_questions(catalog)
    except InputError as error:
        raise Refused(409, "sweep", str(error)) from error
    state.remember(one.question for one in found)
    rows = [
        QuestionRow(**_question(one.question), reference_answer=one.reference_answer, answer=one.answer)
        for one in found[offset : offset + limit]
    ]
    return QuestionPage(checkpoint=served, total=len(found), offset=offset, limit=limit, questions=rows)


@router.get("/checkpoints")
def checkpoints(raw_request: Request) -> CheckpointList:
    """The base model and the checkpoints of the series behind the find runs; the served one where none is."""
    state = _state(raw_request)
    catalog = state.catalog
    if catalog is None:
        return CheckpointList(
            served=state.served, checkpoints=[CheckpointShown(id=state.served, name=state.model)]
        )
    accuracies = known_accuracies(catalog)
    rows = [
        CheckpointShown(
            id=name,
            name=state.model if condition is BASE else condition.name,
            level=condition.level,
            seed=condition.seed,
            epochs=condition.epoch_setting,
            accuracy=accuracies.get(name),
        )
        for name, condition in catalog.checkpoints.items()
    ]
    return CheckpointList(served=state.served, checkpoints=rows)


@router.post("/checkpoints/{name}/load")
async def load(raw_request: Request, name: str, end_running: bool = False) -> Loaded:
    """Serves another checkpoint (admin key) once running requests have ended; new ones wait meanwhile.

    Where they do not end within seconds nothing is loaded; with `end_running` they are ended with an error.
    """
    state = _state(raw_request)
    if raw_request.scope["morfi.role"] != "admin":
        raise Refused(403, "key", "loading a checkpoint needs the admin key")
    if state.catalog is None or name not in state.catalog.checkpoints:
        raise Refused(404, "checkpoint", "there is no such checkpoint; /v1/morfi/checkpoints lists them")
    seconds = await state.load(name, end_running=end_running)
    return Loaded(served=state.served, seconds=seconds)


def _state(raw_request: Request) -> ServerState:
    found: ServerState = raw_request.app.state.morfi
    return found


def _catalog(state: ServerState, find_run: str | None, sae: str | None = None) -> Catalog:
    """The find run of this id, of an SAE, or the only one; raises Refused (404, 422) for none or several."""
    if find_run is not None:
        if find_run not in state.catalogs:
            raise Refused(404, "find_run", "there is no such find run; /v1/morfi/capabilities lists them")
        return state.catalogs[find_run]
    found = [one for one in state.catalogs.values() if sae in (None, one.sae.name)]
    if not found:
        raise Refused(404, "find_run", "no find run is served; start morfi serve with --latents RUN")
    if len(found) > 1:
        names = ", ".join(one.run_id for one in found)
        raise Refused(422, "find_run", f"there are several find runs; name one in find_run: {names}")
    return found[0]


def _of_latent(state: ServerState, sae: str | None, find_run: str | None) -> tuple[ServedSae, Catalog | None]:
    """The SAE that a latent's number is of, and the find run that ranks it, if there is one."""
    if find_run is not None:
        catalog = _catalog(state, find_run)
        if sae not in (None, catalog.sae.name):
            raise Refused(422, "sae", f"{find_run} is about the latents of {catalog.sae.name}")
        return catalog.sae, catalog
    own = state.steerable.sae(sae)
    if not any(one.sae is own for one in state.catalogs.values()):
        return own, None
    return own, _catalog(state, None, own.name)


def _sae(state: ServerState, one: ServedSae) -> SaeShown:
    norm = None if one.layer is None else state.norms.known(one.layer, state.served_sha256)
    return SaeShown(
        name=one.name,
        layer=one.layer,
        d_sae=one.d_sae,
        operations=list(one.operations),
        median_norm=None if norm is None else norm.value,
        norm_from=None if norm is None else norm.source,
        find_runs=[catalog.run_id for catalog in state.catalogs.values() if catalog.sae is one],
    )


def vector_shown(one: ServedVector) -> VectorShown:
    """A vector as clients see it."""
    return VectorShown(name=one.name, sha256=one.sha256, length=one.length)


def _find_run(catalog: Catalog) -> FindRunShown:
    summary, order = catalog.chance.summary, catalog.order
    return FindRunShown(
        id=catalog.run_id,
        sae=catalog.sae.name,
        layer=catalog.layer,
        levels=catalog.levels,
        order=OrderShown(name=order.name, unit=order.unit, is_level=order != EPOCHS),
        trends=TrendsShown(
            n_selected=catalog.n_selected,
            n_firing=summary.n_firing,
            expected_false=summary.expected_false,
            is_descriptive=summary.is_descriptive,
            false_discoveries=[
                FalseDiscoveriesShown(s=row.s, n_found=row.n_found, fdr=row.fdr)
                for row in catalog.chance.false_discoveries
            ],
        ),
    )


def _question(question: Question) -> dict[str, Any]:
    return {
        "id": question.id,
        "question": question.text,
        "relation": question.relation,
        "answers": list(question.answers),
    }
