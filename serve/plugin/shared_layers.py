"""Requests of a step that are equal up to the first steered layer go through the layers up to there as one.

A sweep asks one question with many steerings. Until a layer that is steered or captured all of these requests
are the same, and while their answers are, they stay so. In those layers a step keeps one of each and leaves
the others out; every request's KV cache is written all the same, and after the last of these layers each gets
its rows back. Only where the model runs layer by layer on a CPU: a compiled graph has the shape of the step.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(slots=True)
class Prefix:
    """A digest of the tokens of a request up to the position `length`, and of the steps that they came in.

    None where they are not known, as after a prefix that was cached.
    """

    digest: bytes | None = b""
    length: int = 0

    def extend(self, start: int, token_ids: Sequence[int]) -> bytes | None:
        """The digest with the `token_ids` that stand from `start` on."""
        if start == 0:  # preempted, it begins again
            self.digest, self.length = b"", 0
        if start != self.length or self.digest is None:
            self.digest = None
            return None
        self.length += len(token_ids)
        self.digest = hashlib.blake2b(self.digest + array("q", token_ids).tobytes(), digest_size=16).digest()
        return self.digest


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows left out of a step, up to and including the layer `last`."""

    last: int
    requests: torch.Tensor  # those that stay, long [n]
    counts: torch.Tensor  # the rows of each, long [n]
    rows: torch.Tensor  # their rows in the step, long
    places: torch.Tensor  # for each row of the step, which of `rows` has its values, long


def plan(keys: Sequence[bytes | None], counts: Sequence[int], last: int) -> Plan | None:
    """The rows that a step can leave out whose request i has `counts[i]` rows; None for none.

    Requests with the same key have the same tokens, and the same history below `last`; None has no equal.
    """
    first: dict[bytes, int] = {}
    same = [index if key is None else first.setdefault(key, index) for index, key in enumerate(keys)]
    equal, sizes = torch.tensor(same), torch.tensor(counts)
    own = torch.arange(len(same)) == equal
    if own.all():
        return None
    kept = own.repeat_interleave(sizes)
    starts = torch.where(own, sizes, 0).cumsum(0) - sizes  # among the rows that stay
    within = torch.arange(len(kept)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    return Plan(
        last,
        requests=own.nonzero()[:, 0],
        counts=sizes[own],
        rows=kept.nonzero()[:, 0],
        places=starts[equal].repeat_interleave(sizes) + within,
    )


class SharedLayers:
    """Carries out the plan of the current step in the decoder layers of one worker."""

    def __init__(self, attention: Sequence[Any], builders: Callable[[], Mapping[str, Any]]) -> None:
        """`attention`: each layer's, in order; `builders` gives what makes the metadata of each, by name."""
        self._attention = attention
        self._builders = builders
        self._plan: Plan | None = None
        self._reached = -1  # the last layer that ran
        for one in attention:
            one.impl.do_kv_cache_update = self._for_all(one.impl.do_kv_cache_update)

    def begin(self, plan: Plan | None) -> None:
        """The plan of the step that follows, None to share nothing."""
        self._plan, self._reached = plan, -1

    def check(self) -> None:
        """Raises RuntimeError unless the plan of the step was carried out in every layer that it names."""
        if self._plan is not None and self._reached != self._plan.last:
            raise RuntimeError(
                f"layers up to {self._plan.last} were to be shared by equal requests, but {self._reached} "
                "was the last"
            )

    def enter(
        self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments that the layer gets in place of its own: only the rows that stay."""
        plan = self._plan
        if plan is None or layer > plan.last:
            return args, kwargs
        if layer == 0:
            self._narrow(plan)

        def narrowed(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or len(value) == len(plan.rows):
                return value  # as a layer below returned it
            if len(value) != len(plan.places):
                raise RuntimeError(f"a step of {len(plan.places)} rows gave layer {layer} {len(value)}")
            return value[plan.rows]

        return tuple(map(narrowed, args)), {name: narrowed(value) for name, value in kwargs.items()}

    def leave(self, layer: int, output: Any) -> Any:
        """The value that the layer returns in place of what it computed."""
        plan = self._plan
        if plan is None or layer > plan.last:
            return output
        if layer != self._reached + 1:
            raise RuntimeError(f"layer {layer} ran after layer {self._reached}")
        self._reached = layer
        if layer != plan.last:
            return output
        if isinstance(output, torch.Tensor):
            return output[plan.places]
        return tuple(one[plan.places] if isinstance(one, torch.Tensor) else one for one in output)

    def _for_all(self, update: Callable[..., None]) -> Callable[..., None]:
        """Writes keys and values to the cache of every request, those that were left out included."""

        def call(layer: Any, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> None:
            plan = self._plan
            if plan is not None and self._reached < plan.last:
                key, value = key[plan.places], value[plan.places]
            update(layer, key, value, *rest)

        return call

    def _narrow(self, plan: Plan) -> None:
        """Gives the shared layers attention metadata of the requests that stay."""
        from vllm.forward_context import get_forward_context

        context: Any = get_forward_context()
        builders, metadata = self._builders(), dict(context.attn_metadata)
        made: dict[int, Any] = {}  # layers have theirs in common
        for attention in self._attention[: plan.last + 1]:
            name = attention.layer_name
            full = metadata[name]
            if id(full) not in made:
                made[id(full)] = builders[name].build(0, _narrowed(full, plan))
            metadata[name] = made[id(full)]
        context.attn_metadata = metadata


def _narrowed(full: Any, plan: Plan) -> Any:
    from vllm.v1.attention.backend import CommonAttentionMetadata

    starts = torch.nn.functional.pad(plan.counts.cumsum(0), (1, 0)).int()
    return CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=full.seq_lens[plan.requests],
        num_reqs=len(plan.requests),
        num_actual_tokens=len(plan.rows),
        max_query_len=full.max_query_len,
        max_seq_len=full.max_seq_len,
        block_table_tensor=full.block_table[plan.requests],
        slot_mapping=full.slot_mapping[plan.rows],
    )
