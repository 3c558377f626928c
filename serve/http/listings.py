"""/v1/morfi: what is served, its latents, questions to try, and other checkpoints."""

from __future__ import annotations

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
    FalseDiscoveriesShown,
    LatentDetails,
    LatentPage,
    LatentRow,
    LimitsShown,
    Loaded,
    NeighbourRow,
    OperationShown,
    OrderShown,
    QuestionPage,
    QuestionRow,
    TopQuestionRow,
    TrendsShown,
)
from morfi.serve.http.state import ServerState

router = APIRouter(prefix="/v1/morfi", responses=ERRORS)
Limit = Annotated[int, Query(ge=1, le=200)]
Offset = Annotated[int, Query(ge=0, lt=1 << 31)]
LatentPath = Annotated[int, Path(ge=0, lt=1 << 31)]
Direction = Literal["rising", "falling", "any"]
Selected = Literal["true", "false", "any"]
Sort = Literal["score", "id", "rho", "slope", "firing"]


# Plain functions: they run in threads, so that they hold up no stream.


@router.get("/capabilities")
def capabilities(raw_request: Request) -> Capabilities:
    """The served model, and what may be asked of it."""
    state = _state(raw_request)
    catalog, limits = state.catalog, state.gate.limits
    return Capabilities(
        model=state.model,
        base=state.model,
        checkpoint=state.served,
        find_run=catalog.found.run.run_id,
        layer=catalog.layer,
        n_layers=state.engine.model_config.get_total_num_hidden_layers(),
        d_model=catalog.found.sae.encoder.d_model,
        d_sae=catalog.d_sae,
        sae=state.sae_name,
        median_norm=state.median_norm,
        operations=list(state.operations),
        operation_words=[OperationShown.of(OPERATIONS[name]) for name in state.operations],
        positions=list(NAMED_POSITIONS),
        levels=catalog.levels,
        order=OrderShown(name=catalog.order.name, unit=catalog.order.unit, is_level=catalog.order != EPOCHS),
        trends=_trends(catalog),
        prompt=ASKED,
        chat=bool(getattr(state.tokenizer, "chat_template", None)),
        limits=LimitsShown(**{name: getattr(limits, name) for name in LimitsShown.model_fields}),
        needs_key=state.needs_key,
        can_load=raw_request.scope["morfi.role"] == "admin" and state.can_load,
    )


@router.get("/latents")
def latents(
    *,
    raw_request: Request,
    direction: Direction = "any",
    selected: Selected = "any",
    sort: Sort = "score",
    order: Literal["desc", "asc"] = "desc",
    limit: Limit = 20,
    offset: Offset = 0,
) -> LatentPage:
    """The latents of the find run, filtered and sorted."""
    catalog = _state(raw_request).catalog
    chosen = None if selected == "any" else selected == "true"
    table = catalog.latents(direction=direction, selected=chosen, sort=sort, descending=order == "desc")
    rows = [LatentRow(**catalog.with_chance(row)) for row in shown(table.slice(offset, limit))]
    return LatentPage(total=len(table), offset=offset, limit=limit, levels=catalog.levels, latents=rows)


@router.get("/latents/{latent}")
def latent_details(raw_request: Request, latent: LatentPath) -> LatentDetails:
    """One latent: its trend, its decoder's neighbours, and the questions that it fires on most."""
    state = _state(raw_request)
    catalog, served, sha256 = state.catalog, state.served, state.served_sha256
    if latent >= catalog.d_sae:
        raise Refused(404, "latent", f"latent {latent}: there are the latents 0 to {catalog.d_sae - 1}")
    neighbours = catalog.neighbours(latent)
    row, *others = catalog.rows([latent, *(one.latent for one in neighbours)])
    return LatentDetails(
        **catalog.with_chance(row),
        checkpoint=served,
        levels=catalog.levels,
        neighbours=[
            NeighbourRow(
                id=one.latent, cosine=one.cosine, direction=other["direction"], selected=other["selected"]
            )
            for one, other in zip(neighbours, others, strict=True)
        ],
        top_questions=[
            TopQuestionRow(**_question(one.question), activation=one.activation)
            for one in catalog.top_questions(latent, sha256)
        ],
    )


@router.get("/questions")
def questions(
    raw_request: Request, lost: bool = False, limit: Limit = 20, offset: Offset = 0
) -> QuestionPage:
    """Questions to try; with `lost` those that M_0 answered right in a sweep and the served one wrong."""
    state = _state(raw_request)
    served = state.served
    try:
        found = lost_questions(state.catalog, served) if lost else captured_questions(state.catalog)
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
    """The base model and the checkpoints of the train run behind the find run."""
    state = _state(raw_request)
    accuracies = known_accuracies(state.catalog)
    rows = [
        CheckpointShown(
            id=name,
            name=state.model if condition is BASE else condition.name,
            level=condition.level,
            seed=condition.seed,
            epochs=condition.epoch_setting,
            accuracy=accuracies.get(name),
        )
        for name, condition in state.catalog.checkpoints.items()
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
    if name not in state.catalog.checkpoints:
        raise Refused(404, "checkpoint", "there is no such checkpoint; /v1/morfi/checkpoints lists them")
    seconds = await state.load(name, end_running=end_running)
    return Loaded(served=state.served, seconds=seconds)


def _state(raw_request: Request) -> ServerState:
    found: ServerState = raw_request.app.state.morfi
    return found


def _trends(catalog: Catalog) -> TrendsShown:
    summary = catalog.chance.summary
    return TrendsShown(
        n_selected=catalog.n_selected,
        n_firing=summary.n_firing,
        expected_false=summary.expected_false,
        is_descriptive=summary.is_descriptive,
        false_discoveries=[
            FalseDiscoveriesShown(s=row.s, n_found=row.n_found, fdr=row.fdr)
            for row in catalog.chance.false_discoveries
        ],
    )


def _question(question: Question) -> dict[str, Any]:
    return {
        "id": question.id,
        "question": question.text,
        "relation": question.relation,
        "answers": list(question.answers),
    }
