"""The state that the routes share: the engine, the find run's catalog, and which checkpoint is served."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from vllm.exceptions import VLLMError

from morfi.checkpoints.tokenizer import load_tokenizer
from morfi.engine.operations import OPERATIONS
from morfi.engine.steering import Latent as SaeLatent
from morfi.engine.steering import Steering as Entry
from morfi.engine.strengths import steering_of
from morfi.errors import InputError, MorfiError
from morfi.questions.question import Question
from morfi.serve.http.async_engine import Followed, SteeringLLM
from morfi.serve.http.gate import Gate, Refused
from morfi.serve.http.questions import asked_questions
from morfi.serve.http.wire import AppliedLatent, Latent, Positions, Steering, SteeringApplied
from morfi.serve.plugin.admission import admission_of

if TYPE_CHECKING:
    from morfi.serve.http.catalog import Catalog

NOTHING = (
    "where n_tokens is 0 the answer is the unsteered model's: strength 0, a latent that does not fire, or no "
    "token of these positions was put into the model"
)
_log = logging.getLogger("morfi.serve")


@dataclass(frozen=True, slots=True)
class Planned:
    """A checked steering: the entries for the engine, and what the answer will say of them."""

    entries: tuple[Entry, ...]
    positions: Positions
    latents: list[AppliedLatent]
    layer: int
    checkpoint: str

    def applied(self, followed: Sequence[Followed]) -> SteeringApplied:
        """The steering that was applied to all prompts of a request, whose reports have been checked."""
        n_tokens = [n for one in followed for n in one.n_tokens]
        if not n_tokens or not all(one.n_tokens for one in followed):
            raise MorfiError("the workers have not reported what they steered; the answer is not given")
        return SteeringApplied(
            note=None if all(n_tokens) else NOTHING,
            layer=self.layer,
            positions=self.positions,
            checkpoint=self.checkpoint,
            latents=self.latents,
            n_tokens=n_tokens,
        )


@dataclass(eq=False)
class ServerState:
    """Everything behind the routes; `sae` is the name of the catalog's SAE in the engine."""

    engine: SteeringLLM
    catalog: Catalog
    gate: Gate
    model: str
    served: str  # id of the checkpoint that is served
    served_sha256: str
    sae: str
    operations: tuple[str, ...]
    tokenizer: Any
    needs_key: bool
    backend: str = "morfi"  # what vLLM calls itself in its answers
    answers: dict[str, tuple[str, ...]] = field(default_factory=dict)  # accepted, by question

    @property
    def sae_name(self) -> str:
        """The name of the find run's SAE, without the folder it lies in."""
        return PurePath(self.catalog.found.settings.sae).name

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
        """Whether the catalog's checkpoints fit the model that the engine was started on."""
        return self.engine.served.started_on == self.catalog.series.base.sha256

    @property
    def median_norm(self) -> float:
        """The unit of strengths, for the checkpoint that is served."""
        return self.catalog.median_norm(self.served_sha256)

    def plan(self, steering: Steering) -> Planned:
        """The engine's entries for a steering; raises Refused (422) for what cannot be done here."""
        if steering.layer is not None and steering.layer != self.catalog.layer:
            raise Refused(
                422,
                "layer",
                f"layer {steering.layer}: the latents of this find run are steered after layer "
                f"{self.catalog.layer}",
                param="steering.layer",
            )
        for latent in steering.latents:
            self._check(latent)
        self._check_size(steering)
        entries = tuple(self._entry(latent, steering.positions) for latent in steering.latents)
        latents = [
            AppliedLatent(**latent.model_dump(exclude={"op"}), op=latent.operation, strength=entry.strength)
            for latent, entry in zip(steering.latents, entries, strict=True)
        ]
        return Planned(entries, steering.positions, latents, self.catalog.layer, self.served)

    def _check(self, latent: Latent) -> None:
        """Raises Refused (422) for a latent that there is not, or that this cannot be done with."""
        catalog = self.catalog
        if latent.id >= catalog.d_sae:
            raise _unfit("latent", f"latent {latent.id}: there are the latents 0 to {catalog.d_sae - 1}")
        if not catalog.row_norm(latent.id):
            raise _unfit("latent", f"latent {latent.id} has an empty decoder row; it leads nowhere")
        if latent.operation not in self.operations:
            possible = ", ".join(self.operations)
            raise _unfit("operation", f'"{latent.operation}" cannot be done with this SAE; {possible} can')

    def _entry(self, latent: Latent, positions: Positions) -> Entry:
        """One latent's steering, as the engine takes it."""
        return steering_of(
            self.catalog.layer,
            SaeLatent(self.sae, latent.id),
            latent.operation,
            latent.amount,
            median_norm=self.median_norm,
            positions=positions,
        )

    def _check_size(self, steering: Steering) -> None:
        """Raises Refused (422) where the latents together would move the stream too far."""
        unit, limit = self.median_norm, self.gate.limits.max_alpha
        amounts = {latent.id: 0.0 for latent in steering.latents}
        values = set()  # of one latent there is one, however often it is given
        for latent in steering.latents:
            operation, amount = OPERATIONS[latent.operation], latent.amount or 0.0
            if operation.is_sum:
                amounts[latent.id] += amount
            elif operation.puts_in:
                values.add((latent.id, amount))
        for latent_id, value in values:
            amounts[latent_id] += value * self.catalog.row_norm(latent_id) / unit
        size = self.catalog.moved(amounts)
        if not size <= limit * (1 + 1e-6):  # at the limit, rounding errors are no reason
            which = ", ".join(map(str, amounts))
            raise _unfit(
                "alpha",
                f"latents {which}: together they would move the stream by {size:g} median residual norms; "
                f"at most {limit:g}",
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
                checkpoint = await asyncio.to_thread(self.catalog.open, name)
                await asyncio.to_thread(self.catalog.median_norm, checkpoint.sha256)
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
        return time.monotonic() - begun

    def begins_with_bos(self, prompts: Sequence[Any]) -> bool:
        """Whether the prompts that are texts begin with BOS already, so that the tokenizer must add none.

        Raises Refused (422) where some do and others do not.
        """
        bos = getattr(self.tokenizer, "bos_token", None) or ""
        begins = [bos != "" and one.startswith(bos) for one in prompts if isinstance(one, str)]
        if any(begins) and not all(begins):
            raise Refused(422, "bos", f"some prompts begin with {bos}; leave it out of all", param="prompt")
        return any(begins)

    def check_token_ids(self, prompts: Sequence[Sequence[int]]) -> None:
        """Raises Refused (400) for ids that neither the model nor the tokenizer has."""
        try:
            for prompt in prompts:
                self.engine.renderer.validate_token_ids(prompt)
        except VLLMError as error:
            raise Refused(400, "prompt", str(error), param="prompt") from error

    def check_answers(self) -> None:
        """Raises Refused after a load that failed half way."""
        if not self.engine.served.answers:
            raise Refused(
                503,
                "checkpoint",
                "the last load failed half way; nothing is answered until a checkpoint is loaded",
                retry_after_s=5,
            )


def _unfit(reason: str, message: str) -> Refused:
    return Refused(422, reason, message, param="steering.latents")


def start_state(
    engine: SteeringLLM, catalog: Catalog, gate: Gate, model: str, served: str, *, needs_key: bool
) -> ServerState:
    """The state of a server whose engine serves the checkpoint `served`; registers the SAE with it."""
    sha256 = engine.served.sha256
    assert sha256 is not None
    catalog.median_norm(sha256)  # so that no request waits for it
    state = ServerState(
        engine=engine,
        catalog=catalog,
        gate=gate,
        model=model,
        served=served,
        served_sha256=sha256,
        sae=admission_of(engine.input_processor).register(catalog.directions()),
        operations=catalog.operations,
        tokenizer=load_tokenizer(
            engine.served.model_dir, catalog.bos
        ),  # vLLM works with its own in other threads
        needs_key=needs_key,
    )
    state.remember(asked_questions(catalog))
    return state
