"""A step's work in torch, layer by layer, where no graph has to hold it: on a CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from morfi.engine.operations import ADD
from morfi.engine.steering import MAX_ENTRIES
from morfi.errors import MorfiError
from morfi.kernels.residual import MOST_SQUARE, UNFIT, Directions, Numbers, factors
from morfi.serve.plugin.work import LayerWork

_BITS = torch.arange(MAX_ENTRIES)


@dataclass(frozen=True, slots=True)
class _Tensors:
    """The work of one layer in one step: long where nothing else is said."""

    rows: torch.Tensor  # [n], of each change
    slots: torch.Tensor  # [n]
    operations: torch.Tensor  # [n]
    strengths: torch.Tensor  # float32 [n]
    lows: torch.Tensor  # float32 [n]
    users: torch.Tensor  # [n]
    where: torch.Tensor  # [n_rows], each row that is changed once
    place: torch.Tensor  # [n], which of `where` a change is for
    keep: torch.Tensor  # rows to capture
    keep_before: torch.Tensor  # those of `keep` whose value from before the steering is wanted
    only_added: bool  # whether x itself need not be looked at


class HostWork:
    """The work of the current step, and what the layers left of it."""

    def __init__(self, device: torch.device) -> None:
        self.changed = torch.zeros(0, dtype=torch.int32)  # rows of the step, as the kernel says
        self._device = device
        self._tensors: dict[int, _Tensors] = {}
        self._kept: dict[int, torch.Tensor] = {}
        self._n_calls: dict[int, int] = {}

    def fill(self, work: Mapping[int, LayerWork], n_rows: int) -> None:
        """Tells the layers what to do in the next step, which has `n_rows` rows."""
        self.changed = torch.zeros(n_rows, dtype=torch.int32, device=self._device)
        self._tensors = {layer: self._made(one) for layer, one in work.items()}
        self._kept.clear()
        self._n_calls.clear()

    def run(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, layer: int, directions: Directions
    ) -> None:
        """The work of one layer, if it has any."""
        tensors = self._tensors.get(layer)
        if tensors is None:
            return
        self._n_calls[layer] = self._n_calls.get(layer, 0) + 1
        keep, keep_before = tensors.keep, tensors.keep_before
        before = _stream(hidden, residual, keep) if len(keep_before) else None
        if len(tensors.rows):
            self._steer(hidden, residual, tensors, directions)
        if len(keep):
            self._kept[layer] = kept = _stream(hidden, residual, keep)
            if before is not None:
                kept[keep_before] = before[keep_before]

    def captured(self, layer: int) -> torch.Tensor | None:
        """The rows captured after `layer`, in the order of its work: float32 [n, d_model]; None for none.

        Raises MorfiError unless the layer did its work once.
        """
        n_calls = self._n_calls.get(layer, 0)
        if n_calls != 1:
            raise MorfiError(
                f"layer {layer} was to be steered or captured once in this step, but its operation ran "
                f"{n_calls} times; no answer is given"
            )
        return self._kept.get(layer)

    def _made(self, work: LayerWork) -> _Tensors:
        keep = [row for _, rows, _ in work.captured for row in rows]
        before = [
            place
            for place, live in enumerate(live for live, rows, _ in work.captured for _ in rows)
            if live.capture is not None and live.capture.before
        ]
        where, place = torch.tensor(work.rows, dtype=torch.long).unique(return_inverse=True)  # type: ignore[no-untyped-call]

        def made(values: Sequence[float], dtype: torch.dtype = torch.long) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device=self._device)

        return _Tensors(
            rows=made(work.rows),
            slots=made(work.slots),
            operations=made(work.operations),
            strengths=made(work.strengths, torch.float32),
            lows=made(work.lows, torch.float32),
            users=made(work.users),
            where=where.to(self._device),
            place=place.to(self._device),
            keep=made(keep),
            keep_before=made(before),
            only_added=set(work.operations) == {ADD.code},
        )

    def _steer(
        self,
        hidden: torch.Tensor,
        residual: torch.Tensor | None,
        tensors: _Tensors,
        directions: Directions,
    ) -> None:
        """Adds factors times the directions to their rows of `hidden`, and notes what that changed.

        Summed in float32 and rounded once, however many directions meet in a row. A row that would not fit
        becomes NaN, so that nothing that follows from it can be taken for an answer.
        """
        d = directions.vectors[tensors.slots]
        factor = _factors(hidden, residual, tensors, directions, d)
        where, place = tensors.where, tensors.place
        old = hidden[where]
        change = torch.zeros_like(old, dtype=torch.float32).index_add_(0, place, d * factor[:, None])
        # Where nothing is added a number stays as it is, a zero with its sign.
        new = (old.float() + change).to(hidden.dtype).where(change != 0, old)
        stream = new if residual is None else new + residual[where]
        fits = stream.float().square().sum(1) <= MOST_SQUARE
        done = torch.zeros(len(where), len(_BITS), dtype=torch.int32, device=new.device)
        users = (tensors.users[:, None] >> _BITS.to(new.device) & 1) * (factor != 0)[:, None]
        done.index_add_(0, place, users.int())
        bits = ((done > 0) << _BITS.to(new.device)).sum(1) * (new != old).any(1)
        hidden[where] = new.masked_fill_(~fits[:, None], float("nan"))
        self.changed[where] |= (bits + UNFIT * ~fits).int()


def _factors(
    hidden: torch.Tensor,
    residual: torch.Tensor | None,
    tensors: _Tensors,
    directions: Directions,
    d: torch.Tensor,
) -> torch.Tensor:
    """The factor of the direction `d` of each change, float32 [n]."""
    numbers = Numbers(*directions.numbers[tensors.slots].unbind(1))
    if tensors.only_added:
        added: torch.Tensor = tensors.strengths * numbers.along
        return added
    x, w = _stream(hidden, residual, tensors.rows), directions.encoders[tensors.slots]
    return factors(x, d, w, numbers, tensors.operations, tensors.strengths, tensors.lows)


def _stream(hidden: torch.Tensor, residual: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
    found = hidden[rows].float()
    return found if residual is None else found + residual[rows].float()
