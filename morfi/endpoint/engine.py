"""An OpenAI-compatible server as an engine: texts in UTF-8 take the place of token ids."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from morfi.checkpoints import Checkpoint
from morfi.endpoint.address import Key, Limits, check_url, endpoint_key, is_open
from morfi.endpoint.client import Client, NoRouteError
from morfi.endpoint.wire import answered_by, body, completion, listed
from morfi.engine.protocol import Completion, Engine, Sampling
from morfi.errors import InputError, MorfiError, nearest
from morfi.files import canonical_sha256
from morfi.terminal import Say

if TYPE_CHECKING:
    from morfi.engine.directions import DecoderRows, Direction, SaeLatents
    from morfi.engine.protocol import StartEngine
    from morfi.engine.steering import Capture, Steering

_NO_FOLDER = Path(os.devnull)  # what the server has of the model is not here


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A model of a server, which was there when it was looked for.

    `listing` is what /v1/models says of the model and does not change from one request to the next; empty
    where the server has no such list.
    """

    url: str
    model: str
    chat: bool
    limits: Limits
    key: Key | None
    listing: Mapping[str, Any]
    say: Say

    @classmethod
    def unreached(cls, url: str, model: str, *, chat: bool, limits: Limits, say: Say) -> Endpoint:
        """An endpoint of which no more is known than how it is to be asked."""
        return cls(check_url(url), model, chat, limits, None, {}, say)

    @property
    def checkpoint(self) -> Checkpoint:
        """The model by all that is known of it: the URL, its name and its listing stand for its weights."""
        known = {"kind": "endpoint", "url": self.url, "model": self.model, "listing": dict(self.listing)}
        sha256 = canonical_sha256(known)
        return Checkpoint(self.model, _NO_FOLDER, sha256, self.model, sha256, None, "")

    @property
    def begins(self) -> str:
        """What is said when it is asked."""
        return f"asking {self.model} at {self.url}"

    @contextlib.contextmanager
    def start(
        self,
        checkpoint: Checkpoint,
        *,
        context: int,  # noqa: ARG002 - the server's own, as its seed
        seed: int,  # noqa: ARG002
        overrides: Mapping[str, Any],
    ) -> Iterator[Engine]:
        """An engine that asks the server for `checkpoint`, its own."""
        assert checkpoint.sha256 == self.checkpoint.sha256
        assert not overrides
        with asyncio.Runner() as runner:
            client = Client(self.url, self.key, self.limits)
            try:
                yield EndpointEngine(self, client, runner)
            finally:
                runner.run(client.close())


def find_endpoint(url: str, model: str, *, chat: bool, limits: Limits, say: Say) -> Endpoint:
    """The endpoint at `url`; raises InputError where it has no such model, MorfiError where it is not there.

    The key is that of the environment (`endpoint_key`).
    """
    url, key = check_url(url), endpoint_key()
    if key is not None:
        say(f"asking with the key in {key.variable}{', which goes there unencrypted' * is_open(url)}")

    async def models() -> dict[str, Any]:
        # Somebody may have mistyped the URL, and waits.
        client = Client(url, key, replace(limits, retries=min(limits.retries, 2)))
        try:
            return await client.ask("/models")
        finally:
            await client.close()

    try:
        known = listed(asyncio.run(models()))
    except NoRouteError:
        say(f"{url} does not list its models: the run is known by the URL and --model {model} alone")
        return Endpoint(url, model, chat, limits, key, {}, say)
    if model not in known:
        there = ", ".join(sorted(known)[:20]) + (", ..." if len(known) > 20 else "")
        raise InputError(f'{url} has no model "{model}"; it has: {there or "none"}.{nearest(model, known)}')
    return Endpoint(url, model, chat, limits, key, known[model], say)


class EndpointEngine:
    """An `Engine` whose prompts are UTF-8: of the text, or of the JSON of a chat's messages."""

    def __init__(self, endpoint: Endpoint, client: Client, runner: asyncio.Runner) -> None:
        self._endpoint = endpoint
        self._client = client
        self._runner = runner
        self._says_no_usage = True
        self._answers_by: Mapping[str, str] = answered_by(endpoint.listing)

    @property
    def settings(self) -> Mapping[str, Any]:
        """What is known of the server and how it is asked."""
        one = self._endpoint
        return {
            "endpoint": one.url,
            "model": one.model,
            "route": self._route,
            "listing": dict(one.listing),
            "concurrency": one.limits.concurrency,
        }

    @property
    def device(self) -> str:
        """The server, of whose device nothing is known."""
        return f"the server at {self._endpoint.url}"

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        on_finished: Callable[[int], None] | None = None,
        *,
        steering: Sequence[Sequence[Steering]] | None = None,
        capture: Capture | Sequence[Capture | None] | None = None,
    ) -> list[list[Completion]]:
        """The completions of each prompt, in order; a request for each, so many at once as the limits say.

        Raises MorfiError where one was not answered as asked: then none is returned.
        """
        if steering is not None or capture is not None:
            self._refuse()
        samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        jobs = [
            (bytes(prompt).decode(), wanted, sample)
            for prompt, wanted in zip(prompts, samplings, strict=True)
            for sample in range(wanted.n)
        ]
        found = iter(self._runner.run(self._together(jobs, on_finished)))
        return [[next(found) for _ in range(wanted.n)] for wanted in samplings]

    def reset_prefix_cache(self) -> None:
        """Does nothing: what a server keeps of earlier prompts is its own."""

    def register(self, what: Direction | SaeLatents | DecoderRows) -> str:  # noqa: ARG002
        """Raises InputError."""
        self._refuse()

    def shards(self, folder: Path) -> AbstractContextManager[None]:  # noqa: ARG002
        """Raises InputError."""
        self._refuse()

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:  # noqa: ARG002
        """Raises InputError."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(f"{self._endpoint.url} is a server, which can be asked only; give a checkpoint")

    @property
    def _route(self) -> str:
        return "/chat/completions" if self._endpoint.chat else "/completions"

    async def _together(
        self, jobs: Sequence[tuple[str, Sampling, int]], on_finished: Callable[[int], None] | None
    ) -> list[Completion]:
        """The completions of texts, as sampled and numbered, in order; the first error ends all of them."""
        found: dict[int, Completion] = {}
        todo = iter(enumerate(jobs))

        async def work() -> None:
            for place, job in todo:
                found[place] = await self._one(*job)
                if on_finished is not None:
                    on_finished(1)

        n_workers = min(self._endpoint.limits.concurrency, len(jobs))
        workers = [asyncio.ensure_future(work()) for _ in range(n_workers)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return [found[place] for place in range(len(jobs))]

    async def _one(self, text: str, sampling: Sampling, sample: int) -> Completion:
        one = self._endpoint
        asked = json.loads(text) if one.chat else text
        answer = await self._client.ask(self._route, body(one.model, asked, sampling, sample))
        try:
            found = completion(answer, one.model, sampling, chat=one.chat)
            self._check_same(answered_by(answer))
        except MorfiError as error:
            raise MorfiError(f"{one.url}{self._route}: {error}; nothing of it is scored") from error
        if answer.get("usage") is None and self._says_no_usage:
            self._says_no_usage = False
            one.say("the server does not say how many tokens it reads and writes (usage): 0 are stored")
        return found

    def _check_same(self, by: Mapping[str, str]) -> None:
        """Raises MorfiError where another checkpoint or engine than before answers under the same name."""
        for name, before in self._answers_by.items():
            if (now := by.get(name, "none")) != before:
                raise MorfiError(
                    f"{name} is {now} where {before} was served before; load that one again, then go on with "
                    "the run"
                )
        self._answers_by = by


if TYPE_CHECKING:

    def _keeps_the_protocol(endpoint: Endpoint) -> StartEngine:
        return endpoint.start
