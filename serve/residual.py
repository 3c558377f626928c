"""The residual stream of one step: which rows are steered and captured, and the operation that does both.

A worker has one `ResidualState`. Before a forward pass `begin` works out the rows from the requests in the
batch; each decoder layer calls `torch.ops.morfi.residual` on its output; after the pass `end` checks that
every layer did its part and hands what was captured to its requests. A step that did not do all that was
asked raises, and the engine answers nothing more: no request goes on unsteered. On a GPU that is known only
some time after the step, so there `unproven` has the last word on what a request is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from morfi.errors import MorfiError
from morfi.serve.device_work import DeviceWork
from morfi.serve.directions import Bank
from morfi.serve.shared_layers import Plan, Prefix, SharedLayers, plan
from morfi.shards import ShardWriter
from morfi.steering import OPERATIONS, Capture, Steering, from_json, spans

Spans = list[tuple[int, int | None]]
_ADD, _ABLATE, _CLAMP, _PROJECT = range(len(OPERATIONS))


@dataclass(frozen=True, slots=True)
class Entry:
    """One steering of a request, made ready: where it goes and what it does there."""

    layer: int
    direction: str
    operation: int
    strength: float
    spans: Spans


@dataclass(slots=True)
class Live:
    """A request that is steered or captured, as one worker sees it."""

    request_id: str
    report: bool  # whether it will be asked for when it has ended
    entries: list[Entry]
    directions: dict[str, bytes]  # packed, by name
    capture: Capture | None
    capture_spans: Spans
    labels: tuple[int, int] | None  # its number and the sample's in shards, where it is to be written to them
    prefix: Prefix = field(default_factory=Prefix)
    reached: int = 0  # positions that were computed or came from the cache, from the first on
    steps: list[tuple[int, int]] = field(default_factory=list)  # not proven yet: number, and first position
    n_captured: dict[int, int] = field(default_factory=dict)  # rows, by layer
    captured: dict[int, list[Rows]] = field(default_factory=dict)  # those not written to shards


@dataclass(frozen=True, slots=True)
class Rows:
    """Residuals of one request, one step and one layer: `values` float32 [n, d_model]."""

    positions: list[int]
    token_ids: list[int]
    values: torch.Tensor


@dataclass(slots=True)
class LayerWork:
    """What one layer does in one step; rows are those of the batch."""

    rows: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    operations: list[int] = field(default_factory=list)
    strengths: list[float] = field(default_factory=list)
    captured: list[tuple[Live, range, range]] = field(default_factory=list)  # its rows and their positions
    tensors: tuple[torch.Tensor, ...] = ()
    kept: torch.Tensor | None = None  # the captured rows, in the order of `captured`
    n_calls: int = 0


class ResidualState:
    """Steering and capture in one worker: the requests that want them, and the work of the current step."""

    def __init__(
        self,
        layers: range,
        d_model: int,
        n_slots: int,
        device: torch.device,
        device_work: DeviceWork | None = None,
        *,
        keeps: bool = True,
        shared_layers: SharedLayers | None = None,
    ) -> None:
        self.layers = layers  # those of this worker
        self.keeps = keeps  # what is captured; of workers with equal residual streams only one does
        self.shards: ShardWriter | None = None
        self.d_model = d_model
        self.bank = Bank(n_slots, d_model, device)
        self.live: dict[str, Live] = {}
        self.ended: dict[str, Live] = {}  # until they are taken
        self.work: dict[int, LayerWork] = {}
        self.device_work = (
            device_work  # where steps may be CUDA graphs, else each layer's work is done in torch
        )
        self.shared_layers = shared_layers

    def add(self, request_id: str, n_prompt: int, extra_args: Mapping[str, Any] | None) -> None:
        """Takes note of a new request whose specification `morfi.serve.admission.admit` made ready."""
        if not extra_args or "morfi" not in extra_args:
            return
        specification = dict(extra_args["morfi"])
        report, shard = specification.pop("report"), specification.pop("shard")
        directions = specification.pop("directions")
        steering, capture = from_json(specification)
        self.live[request_id] = Live(
            request_id,
            bool(report),
            [_entry(one, n_prompt) for one in steering],
            directions,
            capture,
            [] if capture is None else spans(capture.positions, n_prompt),
            None if shard is None else (shard, _sample_of(request_id)),
        )

    def finish(self, request_id: str) -> None:
        """A request has ended, whatever the reason."""
        live = self.live.pop(request_id, None)
        if live is not None and live.report:
            self.ended[request_id] = live

    def take(self, request_ids: Sequence[str]) -> list[Live | None]:
        """The requests of these names, ended or about to be; they are not kept any longer."""
        found = []
        for request_id in request_ids:
            live = self.ended.pop(request_id, None) or self.live.get(request_id)
            if live is not None:
                live.report = False
            found.append(live)
        return found

    @property
    def is_busy(self) -> bool:
        """Whether the next step may have anything to do."""
        return bool(self.live)

    def idle(self) -> None:
        """Leaves nothing to do for the pass that follows, until `begin` says otherwise."""
        self.work.clear()
        if self.shared_layers is not None:
            self.shared_layers.begin(None)
        if self.device_work is not None:
            self.device_work.idle()

    def begin(
        self,
        request_ids: Sequence[str],
        starts: Sequence[int],
        counts: Sequence[int],
        token_ids: Sequence[int] = (),
    ) -> None:
        """Works out the step's rows: request i has `counts[i]` of them, from the position `starts[i]` on.

        `token_ids` are those of all rows; only `shared_layers` looks at them.
        """
        self.work.clear()
        if not self.live:
            return
        offset = 0
        used: dict[str, bytes] = {}
        planned: list[tuple[Live, int, int, int]] = []
        for request_id, start, count in zip(request_ids, starts, counts, strict=True):
            live = self.live.get(request_id)
            if live is not None:
                if start > live.reached and live.reached:
                    raise RuntimeError(f"request {request_id} skipped from {live.reached} to {start}")
                planned.append((live, offset, int(start), int(count)))
                used |= live.directions
            offset += int(count)
        slots = self.bank.slots(used)
        with_work = []
        for live, first_row, start, count in planned:
            if self._plan(live, slots, first_row, start, count):
                with_work.append((live, start))
            live.reached = max(live.reached, start + count)
        if self.shared_layers is not None:
            self.shared_layers.begin(self._shared(request_ids, starts, counts, token_ids))
        if self.device_work is not None:
            self.device_work.fill(self.work)
            steps = self.device_work.steps
            for live, start in with_work:
                unproven = [step for step in live.steps if step[0] > steps.proven]
                live.steps = [*unproven, (steps.last, start)]
            return
        for work in self.work.values():
            work.tensors = self._tensors(work)

    def apply(self, layer: int, hidden: torch.Tensor, residual: torch.Tensor) -> None:
        """Steers in place the rows whose residual stream is hidden + residual, and keeps what is captured."""
        if self.device_work is not None:
            bank = (self.bank.vectors, self.bank.encoders, self.bank.numbers)
            self.device_work.run(hidden, residual, layer, bank)
            return
        work = self.work.get(layer)
        if work is None:
            return
        work.n_calls += 1
        rows, slots, _, strengths, keep, keep_before = work.tensors
        before = _stream(hidden, residual, keep) if len(keep_before) else None
        if len(rows):
            vectors = self.bank.vectors[slots]
            if any(work.operations):
                numbers = self.bank.numbers[slots]
                strengths = self._strengths(hidden, residual, work, numbers)
            else:
                strengths = strengths * self.bank.numbers[slots, 3]
            change = vectors * strengths[:, None]
            if hidden.dtype == torch.float32:
                hidden.index_add_(0, rows, change)
            else:
                # Summed in float32 and rounded once, however many directions meet in a row.
                where, place = rows.unique(return_inverse=True)  # type: ignore[no-untyped-call]
                total = hidden[where].float().index_add_(0, place, change)
                hidden[where] = total.to(hidden.dtype)
        if len(keep):
            work.kept = _stream(hidden, residual, keep)
            if before is not None:
                work.kept[keep_before] = before[keep_before]

    def end(self, input_ids: torch.Tensor) -> None:
        """Checks that the step's work was done, and hands out what was captured; `input_ids`: its tokens."""
        if self.shared_layers is not None:
            self.shared_layers.check()
        if self.device_work is not None and self.work:
            self.device_work.steps.end()
        for layer, work in self.work.items():
            if self.device_work is not None:
                if work.captured:
                    work.kept = self.device_work.captured(layer, work)
            elif work.n_calls != 1:
                raise MorfiError(
                    f"layer {layer} was to be steered or captured once in this step, but its operation ran "
                    f"{work.n_calls} times; no answer is given"
                )
            if not work.captured:
                continue
            assert work.kept is not None
            place = 0
            for live, rows, positions in work.captured:
                values = work.kept[place : place + len(rows)]
                place += len(rows)
                token_ids = input_ids[rows.start : rows.stop].tolist()
                live.n_captured[layer] = live.n_captured.get(layer, 0) + len(rows)
                if live.labels is not None and self.shards is not None:
                    self.shards.add(layer, values, live.labels, positions, token_ids)
                elif self.keeps:
                    live.captured.setdefault(layer, []).append(Rows(list(positions), token_ids, values))
        self.work.clear()

    def unproven(self, live: Live, n_computed: int | None = None) -> str | None:
        """Why what was asked is not known to have been done up to position `n_computed`, None for the end.

        None where it was. Waits for steps in progress that computed one of these positions.
        """
        if self.device_work is None:
            return None  # each step is looked at in its `end`
        needed = [number for number, start in live.steps if n_computed is None or start < n_computed]
        try:
            self.device_work.steps.prove(max(needed, default=0))
        except MorfiError as error:
            return str(error)
        return None

    def _shared(
        self,
        request_ids: Sequence[str],
        starts: Sequence[int],
        counts: Sequence[int],
        token_ids: Sequence[int],
    ) -> Plan | None:
        """What can be left out of the layers up to the first one that has work in this step."""
        last = min(self.work, default=self.layers.stop - 1)
        keys: list[bytes | None] = []
        offset = 0
        for request_id, start, count in zip(request_ids, starts, counts, strict=True):
            live, key = self.live.get(request_id), None
            if live is not None:
                key = live.prefix.extend(start, token_ids[offset : offset + count])
                if any(entry.layer < last for entry in live.entries):
                    key = None  # what it was before may differ in the layers up to `last`
            keys.append(key)
            offset += count
        return plan(keys, counts, last)

    def _plan(self, live: Live, slots: Mapping[str, int], first_row: int, start: int, count: int) -> bool:
        """Adds a request's part of the step to `work`; whether there is any."""
        has_work = False
        for entry in live.entries:
            if entry.layer not in self.layers or (entry.operation == _ADD and not entry.strength):
                continue
            for low, high in within(entry.spans, start, start + count):
                work = self.work.setdefault(entry.layer, LayerWork())
                n = high - low
                work.rows.extend(range(first_row + low - start, first_row + high - start))
                work.slots.extend([slots[entry.direction]] * n)
                work.operations.extend([entry.operation] * n)
                work.strengths.extend([entry.strength] * n)
                has_work = True
        if live.capture is None:
            return has_work
        # A preempted request computes positions again, to equal values.
        for low, high in within(live.capture_spans, max(start, live.reached), start + count):
            rows = range(first_row + low - start, first_row + high - start)
            for layer in live.capture.layers:
                if layer in self.layers:
                    work = self.work.setdefault(layer, LayerWork())
                    work.captured.append((live, rows, range(low, high)))
                    has_work = True
        return has_work

    def _tensors(self, work: LayerWork) -> tuple[torch.Tensor, ...]:
        device = self.bank.vectors.device
        keep = [row for _, rows, _ in work.captured for row in rows]
        before = [
            place
            for place, live in enumerate(live for live, rows, _ in work.captured for _ in rows)
            if live.capture is not None and live.capture.before
        ]
        return (
            torch.tensor(work.rows, dtype=torch.long, device=device),
            torch.tensor(work.slots, dtype=torch.long, device=device),
            torch.tensor(work.operations, dtype=torch.long, device=device),
            torch.tensor(work.strengths, dtype=torch.float32, device=device),
            torch.tensor(keep, dtype=torch.long, device=device),
            torch.tensor(before, dtype=torch.long, device=device),
        )

    def _strengths(
        self, hidden: torch.Tensor, residual: torch.Tensor, work: LayerWork, numbers: torch.Tensor
    ) -> torch.Tensor:
        """What each row's direction is multiplied with, float32 [n]."""
        rows, slots, operations, strengths, *_ = work.tensors
        bias, threshold, inverse_square, along, rescaled = numbers.unbind(1)
        x = _stream(hidden, residual, rows)
        # Units of the SAE to units of the stream: |x| / sqrt(d_model) where norms are rescaled, else 1.
        unit = torch.where(rescaled.bool(), x.norm(dim=1) / self.d_model**0.5, 1.0).clamp_min(1e-20)
        p = (x * self.bank.encoders[slots]).sum(1) / unit + bias
        f = torch.where(p > threshold, p, 0.0)
        component = (x * self.bank.vectors[slots]).sum(1) * inverse_square
        choices = torch.stack((strengths * along, -f * unit, (strengths - f) * unit, -component))
        return choices.gather(0, operations[None])[0]


def _stream(hidden: torch.Tensor, residual: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return hidden[rows].float() + residual[rows].float()


def _entry(steering: Steering, n_prompt: int) -> Entry:
    return Entry(
        steering.layer,
        str(steering.direction),
        OPERATIONS.index(steering.operation),
        float(steering.strength),
        spans(steering.positions, n_prompt),
    )


def _sample_of(request_id: str) -> int:
    """vLLM calls sample i of a request "i_" and the request's id; morfi's own ids have no "_" in front."""
    number, separator, _ = request_id.partition("_")
    return int(number) if separator and number.isdecimal() else 0


def within(found: Spans, start: int, stop: int) -> list[tuple[int, int]]:
    """The parts of `found` that lie in [start, stop)."""
    parts = []
    for low, high in found:
        first, last = max(low, start), stop if high is None else min(high, stop)
        if first < last:
            parts.append((first, last))
    return parts


_current: ResidualState | None = None


def use(state: ResidualState | None) -> None:
    """Makes `state` the one that the operation works with, in this process, from now on."""
    global _current  # noqa: PLW0603 - an operation in a graph cannot be handed an object
    _current = state


def apply(hidden: torch.Tensor, residual: torch.Tensor, layer: int) -> None:
    """What `torch.ops.morfi.residual` does; called directly where nothing is compiled."""
    if _current is not None and (_current.work or _current.device_work is not None):
        _current.apply(layer, hidden, residual)


def shared_layers() -> SharedLayers | None:
    """What leaves out the parts of the current step that requests have in common; None where nothing does."""
    return None if _current is None else _current.shared_layers


_library = torch.library.Library("morfi", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("residual(Tensor(a!) hidden, Tensor residual, int layer) -> ()")  # type: ignore[no-untyped-call]
_library.impl("residual", apply, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


@torch.library.register_fake("morfi::residual")  # type: ignore[untyped-decorator]
def _fake(hidden: torch.Tensor, residual: torch.Tensor, layer: int) -> None: ...
