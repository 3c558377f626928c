"""Rows of a step that are equal go through the layers up to the first steered one as one row.

The prompts of a relation begin with the same exemplars, of which the cache holds whole blocks only; n samples
of a question have the same prompt; and a sweep asks one question with many steerings, which are the same
until a layer that is steered or captured. Up to there a step keeps one of equal rows and leaves the others
out; every request's KV cache is written all the same, and after the last of these layers each gets its rows
back. Only where the model runs layer by layer on a CPU: a compiled graph has the shape of the step.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

_LEAST_SHARE = 16  # one row in so many must be left out: picking rows in every layer costs time as well


class Histories:
    """What each request's residual streams so far come from, as digests: equal ones have equal streams.

    That is the tokens, in the steps that they came in, after blocks of the KV cache that hold the rest.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, bytes | None]] = {}  # by request: positions, and their digest

    def extend(
        self, request_id: str, start: int, token_ids: Sequence[int], cached: Callable[[], bytes | None]
    ) -> bytes | None:
        """The digest of all before the position `start`, from which on `token_ids` are computed now.

        `cached` names the blocks of the cache that hold all before `start`, None where they hold more, or
        less. The digest is None where nothing is known.
        """
        length, before = self._known.get(request_id, (0, b""))
        if start == 0:  # new, or preempted
            before = b""
        elif start != length:  # it begins after a prefix that was cached
            before = cached()
        after = before
        if before is not None:
            text = before + array("q", [start, *token_ids]).tobytes()
            after = hashlib.blake2b(text, digest_size=16).digest()
        self._known[request_id] = start + len(token_ids), after
        return before

    def forget(self, request_id: str) -> None:
        """A request has ended."""
        self._known.pop(request_id, None)


@dataclass(frozen=True, slots=True)
class Plan:
    """The rows left out of a step, up to and including the layer `last`."""

    last: int
    requests: torch.Tensor  # those that keep rows, long [n]
    counts: torch.Tensor  # the rows that each keeps, its last ones, long [n]
    rows: torch.Tensor  # these rows in the step, long
    places: torch.Tensor  # for each row of the step, which of `rows` has its values, long


def plan(histories: Sequence[bytes | None], token_ids: Sequence[list[int]], last: int) -> Plan | None:
    """The rows that a step can leave out whose request i computes `token_ids[i]` after `histories[i]`.

    A row equals another if both stand after the same history and tokens; a history None has no equal. The
    result is None where too few are equal to be worth it.
    """
    sizes = np.array([len(tokens) for tokens in token_ids])
    ends = sizes.cumsum()
    same = np.arange(ends[-1])  # for each row, the one that has its values
    alike: dict[bytes, list[int]] = {}
    for index, history in enumerate(histories):
        if history is not None:
            alike.setdefault(history, []).append(index)
    skipped = np.zeros(len(sizes), np.int64)
    for group in alike.values():
        # In the order of tokens each has the most in common with the one before.
        ordered = sorted(group, key=token_ids.__getitem__) if len(group) > 1 else ()
        for other, index in pairwise(ordered):
            n = skipped[index] = _n_common(token_ids[other], token_ids[index])
            start, other_start = ends[index] - sizes[index], ends[other] - sizes[other]
            same[start : start + n] = same[other_start : other_start + n]
    if skipped.sum() * _LEAST_SHARE < len(same):
        return None
    rows = np.flatnonzero(same == np.arange(len(same)))
    counts = sizes - skipped
    return Plan(
        last,
        requests=torch.from_numpy(np.flatnonzero(counts)),
        counts=torch.from_numpy(counts[counts > 0]),
        rows=torch.from_numpy(rows),
        places=torch.from_numpy(np.searchsorted(rows, same)),
    )


def _n_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two requests begin with alike."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


class SharedLayers:
    """Carries out the plan of the current step in the decoder layers of one worker."""

    def __init__(self, attention: Sequence[Any], builders: Callable[[], Mapping[str, Any]]) -> None:
        """`attention`: each layer's, in order; `builders` gives what makes the metadata of each, by name."""
        self.histories = Histories()
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
