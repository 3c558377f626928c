"""The state that the routes share: the engine, what can be steered along, and which checkpoint is served."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vllm.exceptions import VLLMError

from morfi.checkpoints.tokenizer import load_tokenizer
from morfi.engine.steering import Positions as InSequence
from morfi.engine.steering import Steering as Entry
from morfi.engine.strengths import steering_of
from morfi.errors import InputError, MorfiError
from morfi.questions.load import load_questions
from morfi.questions.prompts import ASKED
from morfi.questions.question import Question
from morfi.serve.http.async_engine import Followed, SteeringLLM
from morfi.serve.http.gate import Gate, Refused
from morfi.serve.http.norms import N_MEASURED, Norm, Norms
from morfi.serve.http.questions import asked_questions, captured_questions
from morfi.serve.http.steerable import Along, Steerable, size_of
from morfi.serve.http.turns import TURNS, ChatTurns
from morfi.serve.http.unembedding import Unembedding
from morfi.serve.http.wire import (
    AppliedLatent,
    AppliedVector,
    Latent,
    Positions,
    Steering,
    SteeringApplied,
    Vector,
)
from morfi.serve.plugin.admission import admission_of

if TYPE_CHECKING:
    from morfi.conditions.series import Series
    from morfi.serve.http.catalog import Catalog
    from morfi.serve.http.launch import Launch

NOTHING = (
    "where n_tokens is 0 the answer is the unsteered model's: strength 0, a latent that does not fire or is "
    "within its bounds, or no token of these positions was put into the model"
)
_log = logging.getLogger("morfi.serve")


@dataclass(frozen=True, slots=True)
class Planned:
    """A checked steering: the entries for the engine, and what the answer will say of them."""

    entries: tuple[Entry, ...]
    latents: list[AppliedLatent]
    vectors: list[AppliedVector]
    checkpoint: str

    def applied(self, followed: Sequence[Followed]) -> SteeringApplied:
        """The steering that was applied to all prompts of a request, whose reports have been checked."""
        n_tokens = [n for one in followed for n in one.n_tokens]
        if not n_tokens or not all(one.n_tokens for one in followed):
            raise MorfiError("the workers have not reported what they steered; the answer is not given")
        return SteeringApplied(
            note=None if all(n_tokens) else NOTHING,
            checkpoint=self.checkpoint,
            latents=self.latents,
            vectors=self.vectors,
            n_tokens=n_tokens,
        )


@dataclass(eq=False)
class ServerState:
    """Everything behind the routes; `catalogs` are the find runs, by id, all of one series of checkpoints."""

    engine: SteeringLLM
    catalogs: dict[str, Catalog]
    steerable: Steerable
    norms: Norms
    gate: Gate
    model: str
    served: str  # id of the checkpoint that is served
    served_sha256: str
    tokenizer: Any
    unembedding: Unembedding
    needs_key: bool
    backend: str = "morfi"  # what vLLM calls itself in its answers
    answers: dict[str, tuple[str, ...]] = field(default_factory=dict)  # accepted, by question

    @property
    def catalog(self) -> Catalog | None:
        """The first of the find runs, whose series is that of all; None where there is none."""
        return next(iter(self.catalogs.values()), None)

    @property
    def series(self) -> Series | None:
        """The series of checkpoints behind the find runs; None where there is none."""
        return None if self.catalog is None else self.catalog.series

    def remember(self, questions: Iterable[Question]) -> None:
        """Takes note of what is right for these questions; those of the same words are one."""
        for question in questions:
            text = question.text.strip()
            self.answers[text] = tuple(dict.fromkeys((*self.answers.get(text, ()), *question.answers)))

    def accepted(self, question: str) -> tuple[str, ...] | None:
        """The answers that are right for a question; None for one that is not known here."""
        return self.answers.get(question.strip())

    @property
    def can_load(self) -> bool:
        """Whether there are checkpoints that fit the model that the engine was started on."""
        return self.series is not None and self.engine.served.started_on == self.series.base.sha256

    async def plan(self, steering: Steering, cleanup: ExitStack, turns: ChatTurns | None = None) -> Planned:
        """The engine's entries for a steering; raises Refused (400, 422) for what cannot be done here.

        `turns` are those of the chat, where positions may be turns. Its vectors stay in the engine until
        `cleanup` is closed, at the end of the request.
        """
        found = [self.steerable.find(one, steering.layer) for one in steering.entries]
        cleanup.enter_context(self.steerable.held(found))
        layers = sorted({along.layer for along in found})
        norms = {layer: await self.norms.of(layer, self.served_sha256) for layer in layers}
        self._check_size(steering, found, norms)
        planned = Planned((), [], [], self.served)
        entries = []
        for one, along in zip(steering.entries, found, strict=True):
            positions = steering.positions_of(one)
            entry = steering_of(
                along.layer,
                along.engine,
                one.operation,
                one.amount,
                median_norm=norms[along.layer].value,
                positions=_in_sequence(positions, turns),
                low=one.lower or 0.0,
            )
            entries.append(entry)
            _say(planned, one, along, positions, entry.strength)
        return replace(planned, entries=tuple(entries))

    def _check_size(self, steering: Steering, found: Sequence[Along], norms: Mapping[int, Norm]) -> None:
        """Raises Refused where all together would move the stream too far, or far without saying so."""
        size, layer = size_of(steering, found, {one: norm.value for one, norm in norms.items()})
        limits, norm = self.gate.limits, norms[layer]
        names = ", ".join(dict.fromkeys(one.label for one in steering.entries))
        param = "steering.latents" if steering.latents else "steering.vectors"
        they = "it" if len(steering.entries) == 1 else "together they"
        moved = f"{names}: {they} would move the stream after layer {layer} by {size:g} of its median"
        slack = 1 + 1e-6  # at a limit, rounding errors are no reason
        if not size <= limits.max_alpha * slack:
            raise Refused(422, "alpha", f"{moved} norms; at most {limits.max_alpha:g}", param=param)
        if size > limits.large_alpha * slack and not steering.allow_large:
            raise Refused(
                400,
                "large",
                f"{moved} norms; without allow_large at most {limits.large_alpha:g}, a move of "
                f"{limits.large_alpha * norm.value:.4g}: the norm is {norm.value:.4g} ({norm.source})",
                param=param,
            )

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: another one for other weights, or another vLLM or its settings."""
        return f"{self.backend}-{self.served_sha256[:12]}"

    async def load(self, name: str, *, end_running: bool = False) -> float:
        """Serves the checkpoint of this id once running requests have ended; returns the seconds it took.

        Those that do not end in time are ended with an error where `end_running` says so. Raises Refused
        where it cannot; then what was served is served still, or, after a load that failed half way, nothing
        is until one succeeds.
        """
        begun = time.monotonic()
        end = self.engine.end_running if end_running else None
        async with self.gate.closed(f"checkpoint {name} is being loaded", end):
            try:
                assert self.catalog is not None
                checkpoint = await asyncio.to_thread(self.catalog.open, name)
                if checkpoint.sha256 != self.engine.served.sha256 or not self.engine.served.answers:
                    await self.engine.load_checkpoint(checkpoint)
            except InputError as error:
                # What is wrong with files, and where they are, is for those who run the server.
                _log.error("%s was not loaded: %s", name, error)
                message = f"{name} is not as it was when it was trained; the server's log says more"
                raise Refused(409, "checkpoint", message) from error
            except MorfiError as error:
                _log.error("%s could not be loaded: %s", name, error)
                message = f"{name} could not be loaded; the server's log says more"
                raise Refused(503, "checkpoint", message, retry_after_s=5) from error
            self.served, self.served_sha256 = name, checkpoint.sha256
            await self.measure(checkpoint.sha256)
        return time.monotonic() - begun

    async def measure(self, sha256: str) -> None:
        """Measures what is not known of the units at the SAEs' layers, so that no request waits for it."""
        for layer in {one.layer for one in self.steerable.saes.values() if one.layer is not None}:
            await self.norms.of(layer, sha256)

    def begins_with_bos(self, prompts: Sequence[Any]) -> bool:
        """Whether the prompts that are texts begin with BOS already, so that the tokenizer must add none.

        Raises Refused (422) where some do and others do not.
        """
        bos = getattr(self.tokenizer, "bos_token", None) or ""
        begins = [bos != "" and one.startswith(bos) for one in prompts if isinstance(one, str)]
        if any(begins) and not all(begins):
            raise Refused(422, "bos", f"some prompts begin with {bos}; leave it out of all", param="prompt")
        return any(begins)

    def check_token_ids(self, prompts: Sequence[Sequence[int]], param: str = "prompt") -> None:
        """Raises Refused (400) for ids that neither the model nor the tokenizer has."""
        try:
            for prompt in prompts:
                self.engine.renderer.validate_token_ids(prompt)
        except VLLMError as error:
            raise Refused(400, "prompt", str(error), param=param) from error

    def check_answers(self) -> None:
        """Raises Refused after a load that failed half way."""
        if not self.engine.served.answers:
            raise Refused(
                503,
                "checkpoint",
                "the last load failed half way; nothing is answered until a checkpoint is loaded",
                retry_after_s=5,
            )


def _in_sequence(positions: Positions, turns: ChatTurns | None) -> InSequence:
    """Positions as the engine takes them; raises Refused (422) for turns of what is no chat."""
    if positions not in TURNS:
        return positions
    if turns is None:
        raise Refused(
            422,
            "positions",
            f'positions "{positions}" are a turn of a chat; /v1/chat/completions takes them',
            param="steering.positions",
        )
    return turns.positions(positions)


def _say(planned: Planned, one: Latent | Vector, along: Along, positions: Positions, strength: float) -> None:
    """Adds what an answer will say of one entry."""
    where: dict[str, Any] = {"layer": along.layer, "positions": positions, "strength": strength}
    common: dict[str, Any] = {"op": one.operation, "alpha": one.alpha, **where}
    if isinstance(one, Latent):
        assert along.sae is not None
        own: dict[str, Any] = {"clamp": one.clamp, "high": one.high, "low": one.low}
        planned.latents.append(AppliedLatent(id=one.id, sae=along.sae, **own, **common))
    else:
        planned.vectors.append(AppliedVector(vector=one.vector, **common))


async def start_state(engine: SteeringLLM, launch: Launch, gate: Gate, *, needs_key: bool) -> ServerState:
    """The state of a server whose engine serves the checkpoint of `launch`.

    Registers what can be steered along; raises InputError for what does not fit the model.
    """
    sha256 = engine.served.sha256
    assert sha256 is not None
    forgetting: set[asyncio.Future[Any]] = set()  # nothing else keeps what runs

    def forget(name: str) -> None:
        task = asyncio.ensure_future(engine.collective_rpc("morfi_forget", args=(name,)))
        forgetting.add(task)
        task.add_done_callback(forgetting.discard)

    steerable = Steerable(admission_of(engine.input_processor), launch.saes, forget)
    if launch.vectors:
        steerable.add_vectors(launch.vectors)
    # vLLM works with its own in other threads.
    tokenizer = load_tokenizer(engine.served.model_dir, launch.bos)

    def prompts() -> tuple[list[list[int]], str]:
        if launch.catalogs:
            source = launch.catalogs[0].run_id
            asked = [one.question for one in captured_questions(launch.catalogs[0])]
        else:
            source = "world-facts"
            asked = list(load_questions(source).splits["dev"])
        texts = [ASKED.format(question=one.text) for one in asked[:N_MEASURED]]
        return [tokenizer(text)["input_ids"] for text in texts], source

    state = ServerState(
        engine=engine,
        catalogs={one.run_id: one for one in launch.catalogs},
        steerable=steerable,
        norms=Norms(engine, launch.catalogs, prompts),
        gate=gate,
        model=launch.model,
        served=launch.served,
        served_sha256=sha256,
        tokenizer=tokenizer,
        unembedding=Unembedding(engine.served.model_dir, tokenizer),
        needs_key=needs_key,
    )
    await state.measure(sha256)
    for catalog in launch.catalogs:
        state.remember(asked_questions(catalog))
    return state
