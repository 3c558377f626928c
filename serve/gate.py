"""What may be in flight at once, and the moment between two checkpoints in which nothing may."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass

from morfi.errors import MorfiError
from morfi.steering import MAX_ENTRIES

MAX_STRENGTHS = 16  # of one comparison


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes; a request counts in flight once for every answer that it asks for.

    `max_vectors` are the different latents that all requests in flight may steer along, `max_alpha` is in
    units of the median residual norm.
    """

    max_alpha: float = 8.0
    max_latents: int = MAX_ENTRIES
    max_requests_in_flight: int = 256
    max_body_bytes: int = 1 << 20
    max_vectors: int = 512
    max_strengths: int = MAX_STRENGTHS
    read_s: float = 20.0  # for a request to arrive, headers and body
    stall_s: float = 30.0  # for a client to take a part of its answer
    drain_s: float = 60.0  # for running requests to end before a load


class Refused(MorfiError):  # noqa: N818 - it is what happens, not what is wrong
    """A request that is not served: an HTTP status, a reason in one word, and what to say."""

    def __init__(
        self, status: int, reason: str, message: str, *, param: str | None = None, retry_after_s: int = 0
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.param, self.retry_after_s = status, reason, param, retry_after_s


class Gate:
    """Counts what is in flight, refuses what is too much, and keeps all out while weights change."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.n_in_flight = 0
        self._latents: Counter[int] = Counter()
        self._closed: str | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def n_vectors(self) -> int:
        """Different latents that requests in flight steer along."""
        return len(self._latents)

    @contextlib.contextmanager
    def admitted(self, n_answers: int, latents: Collection[int]) -> Iterator[None]:
        """Counts a request for as long as the block lasts; raises Refused where it cannot come in now."""
        self._check(n_answers, latents)
        self.n_in_flight += n_answers
        self._latents.update(latents)
        self._empty.clear()
        try:
            yield
        finally:
            self.n_in_flight -= n_answers
            self._latents.subtract(latents)
            self._latents = +self._latents
            if not self.n_in_flight:
                self._empty.set()

    @contextlib.asynccontextmanager
    async def closed(self, what: str) -> AsyncIterator[None]:
        """Lets the block run once all requests in flight have ended; new ones are refused until it is over.

        Raises Refused where something else closed it already, and where requests do not end in time.
        """
        if self._closed is not None:
            raise Refused(409, "loading", f"{self._closed}; wait until that is over", retry_after_s=2)
        self._closed = what
        try:
            try:
                async with asyncio.timeout(self.limits.drain_s):
                    await self._empty.wait()
            except TimeoutError as error:
                raise Refused(
                    503,
                    "draining",
                    f"{self.n_in_flight} answers were still running after {self.limits.drain_s:g} s; nothing "
                    "has changed, try again",
                    retry_after_s=5,
                ) from error
            yield
        finally:
            self._closed = None

    def _check(self, n_answers: int, latents: Collection[int]) -> None:
        limits = self.limits
        if self._closed is not None:
            raise Refused(503, "loading", f"{self._closed}; try again in a moment", retry_after_s=2)
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
        n_vectors = len(self._latents.keys() | set(latents))
        if n_vectors > limits.max_vectors:
            raise Refused(
                429,
                "vectors",
                f"{n_vectors} different latents would be in use at once, at most {limits.max_vectors} are; "
                "try again in a moment",
                retry_after_s=1,
            )
