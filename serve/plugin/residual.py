"""The residual stream of one step: which rows are steered and captured, and the operation that does both.

A worker has one `ResidualState`. Before a forward pass `begin` works out the rows from the requests in the
batch; each decoder layer calls `torch.ops.morfi.residual` on its output; after the pass `end` checks that
every layer did its part and hands what was captured to its requests. A step that did not do all that was
asked raises, and the engine answers nothing more: no request goes on unsteered. On a GPU that is known only
some time after the step, so there `unproven` has the last word on what a request is given.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from morfi.engine.shards import ShardWriter
from morfi.engine.steering import MAX_ENTRIES, Capture, from_json, spans
from morfi.errors import MorfiError
from morfi.kernels import residual as kernel
from morfi.serve.plugin.bank import Bank
from morfi.serve.plugin.changes import Changes
from morfi.serve.plugin.device_work import DeviceWork
from morfi.serve.plugin.joint import Entry, Spans, join
from morfi.serve.plugin.shared_layers import Plan, Prefix, SharedLayers, plan

MOST_SQUARE, UNFIT = (one.value for one in (kernel.MOST_SQUARE, kernel.UNFIT))


@dataclass(slots=True)
class Live:
    """A request that is steered or captured, as one worker sees it."""

    request_id: str
    report: bool  # whether it is kept until it is asked for
    entries: Sequence[Entry]
    directions: Mapping[str, bytes]  # packed, by name
    capture: Capture | None
    capture_spans: Spans
    labels: tuple[int, int] | None  # its number and the sample's in shards, where it is to be written to them
    prefix: Prefix = field(default_factory=Prefix)
    reached: int = 0  # positions that were computed or came from the cache, from the first on
    steps: list[tuple[int, int]] = field(default_factory=list)  # not proven yet: number, and first position
    first: int = 0  # position that was computed, those before it came from the cache
    changed: array[int] = field(default_factory=lambda: array("H"))  # from `first` on, as the kernel says
    n_captured: dict[int, int] = field(default_factory=dict)  # rows, by layer
    captured: dict[int, list[Rows]] = field(default_factory=dict)  # those not written to shards


@dataclass(frozen=True, slots=True)
class Rows:
    """Residuals of one request, one step and one layer: `values` float32 [n, d_model]."""

    positions: list[int]
    token_ids: list[int]
    values: torch.Tensor


@dataclass(frozen=True, slots=True)
class Tensors:
    """The work of one layer in one step, as the operation wants it: long where nothing else is said."""

    rows: torch.Tensor  # [n], of each change
    slots: torch.Tensor  # [n]
    operations: torch.Tensor  # [n]
    strengths: torch.Tensor  # float32 [n]
    users: torch.Tensor  # [n]
    where: torch.Tensor  # [n_rows], each row that is changed once
    place: torch.Tensor  # [n], which of `where` a change is for
    keep: torch.Tensor  # rows to capture
    keep_before: torch.Tensor  # those of `keep` whose value from before the steering is wanted


@dataclass(slots=True)
class LayerWork:
    """The work of one layer in one step; rows are those of the batch."""

    rows: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    operations: list[int] = field(default_factory=list)
    strengths: list[float] = field(default_factory=list)
    users: list[int] = field(default_factory=list)
    captured: list[tuple[Live, range, range]] = field(default_factory=list)  # its rows and their positions
    tensors: Tensors = field(init=False)
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
        self._steered: list[tuple[Live, int, int, int]] = []  # in this step: first row, position, rows
        self._changed = torch.zeros(0, dtype=torch.int32)  # rows of this step, as the kernel says
        # Where steps may be CUDA graphs; without it each layer's work is done in torch.
        self.device_work = device_work
        self.shared_layers = shared_layers
        self.changes = Changes()

    def add(self, request_id: str, n_prompt: int, extra_args: Mapping[str, Any] | None) -> None:
        """Takes note of a new request whose specification `morfi.serve.plugin.admission.admit` made ready."""
        if not extra_args or "morfi" not in extra_args:
            return
        specification = dict(extra_args["morfi"])
        report, shard = specification.pop("report"), specification.pop("shard")
        directions = specification.pop("directions")
        steering, capture = from_json(specification)
        joint = join(steering, directions, n_prompt)
        self.live[request_id] = Live(
            request_id,
            bool(report) and report != "in_core",
            joint.entries,
            joint.directions,
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
                used.update(live.directions)
            offset += int(count)
        slots = self.bank.slots(used)
        with_work = []
        for live, first_row, start, count in planned:
            if self._plan(live, slots, first_row, start, count):
                with_work.append((live, start))
            if not live.reached:
                live.first = start
            live.reached = max(live.reached, start + count)
        if self.shared_layers is not None:
            self.shared_layers.begin(self._shared(request_ids, starts, counts, token_ids))
        self._steered = [one for one in planned if one[0].entries]
        if self.device_work is not None:
            self.device_work.fill(self.work)
            steps = self.device_work.steps
            for live, start in with_work:
                unproven = [step for step in live.steps if step[0] > steps.proven]
                live.steps = [*unproven, (steps.last, start)]
            return
        self._changed = torch.zeros(offset, dtype=torch.int32, device=self.bank.vectors.device)
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
        tensors = work.tensors
        keep, keep_before = tensors.keep, tensors.keep_before
        before = _stream(hidden, residual, keep) if len(keep_before) else None
        if len(tensors.rows):
            factors = tensors.strengths * self.bank.numbers[tensors.slots, 3]
            if any(work.operations):
                factors = self._factors(hidden, residual, tensors)
            self._steer(hidden, residual, tensors, factors)
        if len(keep):
            work.kept = _stream(hidden, residual, keep)
            if before is not None:
                work.kept[keep_before] = before[keep_before]

    def end(self, input_ids: torch.Tensor) -> None:
        """Checks that the step's work was done, and hands out what was captured; `input_ids`: its tokens."""
        if self.shared_layers is not None:
            self.shared_layers.check()
        if self.work and self.device_work is not None:
            self.device_work.steps.end()
            self.changes.add(self._steered, None, self.device_work.steps)
        elif self.work:
            self.changes.add(self._steered, self._changed.tolist(), None)
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
        finally:
            self.changes.tell(self.device_work.steps)
        return None

    def _shared(
        self,
        request_ids: Sequence[str],
        starts: Sequence[int],
        counts: Sequence[int],
        token_ids: Sequence[int],
    ) -> Plan | None:
        """The rows that can be left out of the layers up to the first one that has work in this step."""
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
            if entry.layer not in self.layers:
                continue
            for low, high in within(entry.spans, start, start + count):
                work = self.work.setdefault(entry.layer, LayerWork())
                n = high - low
                work.rows.extend(range(first_row + low - start, first_row + high - start))
                work.slots.extend([slots[entry.direction]] * n)
                work.operations.extend([entry.operation] * n)
                work.strengths.extend([entry.strength] * n)
                work.users.extend([entry.users] * n)
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

    def _tensors(self, work: LayerWork) -> Tensors:
        device = self.bank.vectors.device
        keep = [row for _, rows, _ in work.captured for row in rows]
        before = [
            place
            for place, live in enumerate(live for live, rows, _ in work.captured for _ in rows)
            if live.capture is not None and live.capture.before
        ]
        where, place = torch.tensor(work.rows, dtype=torch.long).unique(return_inverse=True)  # type: ignore[no-untyped-call]

        def made(values: Sequence[float], dtype: torch.dtype = torch.long) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return Tensors(
            rows=made(work.rows),
            slots=made(work.slots),
            operations=made(work.operations),
            strengths=made(work.strengths, torch.float32),
            users=made(work.users),
            where=where.to(device),
            place=place.to(device),
            keep=made(keep),
            keep_before=made(before),
        )

    def _factors(self, hidden: torch.Tensor, residual: torch.Tensor, tensors: Tensors) -> torch.Tensor:
        """The factor of each row's direction, float32 [n]."""
        slots = tensors.slots
        bias, threshold, inverse_square, along, rescaled = self.bank.numbers[slots].unbind(1)
        x = _stream(hidden, residual, tensors.rows)
        # Units of the SAE to units of the stream: |x| / sqrt(d_model) where norms are rescaled, else 1.
        unit = torch.where(rescaled.bool(), x.norm(dim=1) / self.d_model**0.5, 1.0).clamp_min(1e-20)
        p = (x * self.bank.encoders[slots]).sum(1) / unit + bias
        f = torch.where(p > threshold, p, 0.0)
        component = (x * self.bank.vectors[slots]).sum(1) * inverse_square
        choices = torch.stack(
            (tensors.strengths * along, -f * unit, (tensors.strengths - f) * unit, -component)
        )
        return choices.gather(0, tensors.operations[None])[0]

    def _steer(
        self, hidden: torch.Tensor, residual: torch.Tensor, tensors: Tensors, factors: torch.Tensor
    ) -> None:
        """Adds `factors` times the directions to their rows of `hidden`, and notes what that changed.

        Summed in float32 and rounded once, however many directions meet in a row. A row that would not fit
        becomes NaN, so that nothing that follows from it can be taken for an answer.
        """
        where, place = tensors.where, tensors.place
        old = hidden[where]
        change = self.bank.vectors[tensors.slots] * factors[:, None]
        new = old.float().index_add(0, place, change).to(hidden.dtype)
        fits = (new + residual[where]).float().square().sum(1) <= MOST_SQUARE
        done = torch.zeros(len(where), len(_BITS), dtype=torch.int32, device=new.device)
        users = (tensors.users[:, None] >> _BITS.to(new.device) & 1) * (factors != 0)[:, None]
        done.index_add_(0, place, users.int())
        bits = ((done > 0) << _BITS.to(new.device)).sum(1) * (new != old).any(1)
        hidden[where] = new.masked_fill_(~fits[:, None], float("nan"))
        self._changed[where] |= (bits + UNFIT * ~fits).int()


_BITS = torch.arange(MAX_ENTRIES)


def _stream(hidden: torch.Tensor, residual: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return hidden[rows].float() + residual[rows].float()


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
    """The operation `torch.ops.morfi.residual`; called directly where nothing is compiled."""
    if _current is not None and (_current.work or _current.device_work is not None):
        _current.apply(layer, hidden, residual)


def shared_layers() -> SharedLayers | None:
    """The sharing of layers in the current step; None where requests have nothing in common."""
    return None if _current is None else _current.shared_layers


_library = torch.library.Library("morfi", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("residual(Tensor(a!) hidden, Tensor residual, int layer) -> ()")  # type: ignore[no-untyped-call]
_library.impl("residual", apply, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


@torch.library.register_fake("morfi::residual")  # type: ignore[untyped-decorator]
def _fake(hidden: torch.Tensor, residual: torch.Tensor, layer: int) -> None: ...
