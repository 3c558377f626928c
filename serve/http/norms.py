"""The units of strengths: median residual norms after a layer, of a find run's captures or measured."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from morfi.engine.steering import Capture

if TYPE_CHECKING:
    from morfi.serve.http.catalog import Catalog

N_MEASURED = 32  # prompts whose last token is looked at


@dataclass(frozen=True, slots=True)
class Norm:
    """A median residual norm, and where it comes from, in words."""

    value: float
    source: str


class Norms:
    """The units of strengths of a server, by layer and checkpoint; those that are not known are measured.

    `prompts` gives token ids, and says what they are of.
    """

    def __init__(
        self, engine: Any, catalogs: Sequence[Catalog], prompts: Callable[[], tuple[list[list[int]], str]]
    ) -> None:
        self._engine, self._catalogs, self._prompts = engine, catalogs, prompts
        self._measured: dict[tuple[int, str], Norm] = {}
        self._measuring = asyncio.Lock()

    def known(self, layer: int, ckpt_sha256: str) -> Norm | None:
        """The unit after a layer, where nothing needs to be measured for it."""
        for one in self._catalogs:
            if one.layer == layer:
                source = f"{one.run_id}, at the last token of each question's prompt"
                return Norm(one.median_norm(ckpt_sha256), source)
        return self._measured.get((layer, ckpt_sha256))

    async def of(self, layer: int, ckpt_sha256: str) -> Norm:
        """The unit after a layer, for the checkpoint that is served; the first call for one measures it."""
        async with self._measuring:
            known = self.known(layer, ckpt_sha256)
            if known is None:
                known = self._measured[layer, ckpt_sha256] = await self._measure(layer)
        return known

    async def _measure(self, layer: int) -> Norm:
        import torch

        prompts, what = await asyncio.to_thread(self._prompts)
        capture = Capture((layer,), "last_prompt")
        found = await asyncio.gather(*(self._engine.capture(prompt, capture) for prompt in prompts))
        lengths = torch.cat([captured.values.norm(dim=1) for (captured,) in found])
        source = f"measured at the last token of the prompts of {len(prompts)} questions of {what}"
        return Norm(float(lengths.median()), source)
