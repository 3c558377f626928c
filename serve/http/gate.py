"""The limits on requests in flight, and the moment between two checkpoints in which there are none."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from dataclasses import dataclass, replace

from morfi.engine.steering import MAX_ENTRIES
from morfi.errors import MorfiError

MAX_STRENGTHS = 16  # of one comparison


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a server; a request counts in flight once for every answer that it asks for.

    `max_vectors` are the different directions that all requests in flight may steer along. `max_alpha`, and
    `large_alpha`, beyond which a request must say that it means it, are in median residual norms.
    """

    max_alpha: float = 8.0
    large_alpha: float = 2.0
    max_latents: int = MAX_ENTRIES
    max_requests_in_flight: int = 256
    max_body_bytes: int = 1 << 20
    max_vectors: int = 512
    max_strengths: int = MAX_STRENGTHS
    max_activation_tokens: int = 1024  # of one request
    max_named_vectors: int = 256
    read_s: float = 20.0  # for a request to arrive, headers and body
    stall_s: float = 30.0  # for a client to take a part of its answer
    drain_s: float = 5.0  # for running requests to end before a load
    end_s: float = 5.0  # for requests that are ended to be over
    wait_s: float = 30.0  # for a request to wait for a load

    def at_least(self, n_sequences: int) -> Limits:
        """These limits, with room for as many answers, each with a direction, as the engine has at a time."""
        return replace(
            self,
            max_requests_in_flight=max(self.max_requests_in_flight, n_sequences),
            max_vectors=max(self.max_vectors, n_sequences),
        )


class Refused(MorfiError):  # noqa: N818 - it is what happens, not what is wrong
    """A request that is not served: an HTTP status, a reason in one word, and what to say."""

    def __init__(
        self, status: int, reason: str, message: str, *, param: str | None = None, retry_after_s: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.param, self.retry_after_s = status, reason, param, retry_after_s


def ended() -> Refused:
    """The response to a request that was ended before its end."""
    message = "this answer was ended because a checkpoint is being loaded; ask again"
    return Refused(503, "ended", message, retry_after_s=2)


class Gate:
    """Counts what is in flight, refuses what is too much, and keeps all out while weights change."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.n_in_flight = 0
        self.n_waiting = 0
        self._along: Counter[str] = Counter()
        self._closed: str | None = None
        self._opened = asyncio.Event()
        self._opened.set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def n_vectors(self) -> int:
        """Different directions that requests in flight steer along."""
        return len(self._along)

    async def opened(self, n_answers: int) -> None:
        """Waits until nothing keeps requests out; raises Refused where that takes long, or many wait."""
        if self._closed is None:
            return
        if self.n_waiting + n_answers > self.limits.max_requests_in_flight:
            raise self._not_now(f"{self.n_waiting} answers wait for it")
        self.n_waiting += n_answers
        try:
            async with asyncio.timeout(self.limits.wait_s):
                # Something else may have closed it again before this one has its turn.
                while self._closed is not None:
                    await self._opened.wait()
        except TimeoutError as error:
            raise self._not_now(f"that has taken more than {self.limits.wait_s:g} s") from error
        finally:
            self.n_waiting -= n_answers

    @contextlib.contextmanager
    def admitted(self, n_answers: int, along: Collection[str]) -> Iterator[None]:
        """Counts a request for as long as the block lasts; raises Refused where it cannot come in now."""
        self._check(n_answers, along)
        self.n_in_flight += n_answers
        self._along.update(along)
        self._empty.clear()
        try:
            yield
        finally:
            self.n_in_flight -= n_answers
            self._along.subtract(along)
            self._along = +self._along
            if not self.n_in_flight:
                self._empty.set()

    @contextlib.asynccontextmanager
    async def closed(
        self, what: str, end_running: Callable[[], Awaitable[None]] | None = None
    ) -> AsyncIterator[None]:
        """Lets the block run once all requests in flight have ended; new ones wait until it is over.

        Those that do not end in time are ended with `end_running`; without it, and where they do not end
        then, Refused is raised, as where something else closed it already.
        """
        if self._closed is not None:
            raise Refused(409, "loading", f"{self._closed}; wait until that is over", retry_after_s=2)
        self._closed = what
        self._opened.clear()
        try:
            if not await self._emptied(self.limits.drain_s) and not await self._ended(end_running):
                hint = "" if end_running else ", or with ?end_running=true, which ends them with an error"
                raise Refused(
                    409,
                    "busy",
                    f"{self.n_in_flight} answers were still running after {self.limits.drain_s:g} s; nothing "
                    f"has changed. Load again later{hint}",
                    retry_after_s=5,
                )
            yield
        finally:
            self._closed = None
            self._opened.set()

    async def _emptied(self, limit_s: float) -> bool:
        """Whether nothing is in flight any more before the time is up."""
        try:
            async with asyncio.timeout(limit_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def _ended(self, end_running: Callable[[], Awaitable[None]] | None) -> bool:
        """Ends what runs, and what comes to run meanwhile, as it was let in before; whether all has ended."""
        if end_running is None:
            return False
        deadline = asyncio.get_running_loop().time() + self.limits.end_s
        while asyncio.get_running_loop().time() < deadline:
            await end_running()
            if await self._emptied(0.1):
                return True
        return False

    def _not_now(self, why: str) -> Refused:
        return Refused(503, "loading", f"{self._closed}, and {why}; try again in a moment", retry_after_s=2)

    def _check(self, n_answers: int, along: Collection[str]) -> None:
        limits = self.limits
        if self._closed is not None:
            raise self._not_now("nothing is let in meanwhile")
        if n_answers > limits.max_requests_in_flight:
            raise Refused(
                422,
                "answers",
                f"the request asks for {n_answers} answers; at most {limits.max_requests_in_flight} at once",
            )
        if self.n_in_flight + n_answers > limits.max_requests_in_flight:
            raise Refused(
                429,
                "in_flight",
                f"{self.n_in_flight} answers are being made and {n_answers} more would be over "
                f"{limits.max_requests_in_flight}; try again in a moment",
                retry_after_s=1,
            )
        n_vectors = len(self._along.keys() | set(along))
        if n_vectors > limits.max_vectors:
            raise Refused(
                429,
                "vectors",
                f"{n_vectors} different directions would be in use at once, at most {limits.max_vectors} "
                "are; try again in a moment",
                retry_after_s=1,
            )
