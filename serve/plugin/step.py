"""The residual stream of one step: which rows are steered and captured, and whether they were.

A worker has one `ResidualState`. Before a forward pass `begin` works out the rows from the requests in the
batch; each decoder layer has `apply` called on its output, see `morfi.serve.plugin.operation`; after the pass
`end` checks that every layer did its part and hands what was captured to its requests. A step that did not do
all that was asked raises, and the engine answers nothing more: no request goes on unsteered. On a GPU that is
known only some time after the step, so there `unproven` has the last word on what a request is given.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from morfi.engine.shards import ShardWriter
from morfi.engine.steering import from_json, spans
from morfi.errors import MorfiError
from morfi.serve.plugin.bank import Bank
from morfi.serve.plugin.device_work import DeviceWork
from morfi.serve.plugin.host_work import HostWork
from morfi.serve.plugin.joint import join
from morfi.serve.plugin.progress import Note, Progress
from morfi.serve.plugin.requested import IN_CORE, sample_of
from morfi.serve.plugin.shared_layers import SharedLayers, plan
from morfi.serve.plugin.work import Batch, LayerWork, Live, Rows, Standing, add_work


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
        self.work: dict[int, LayerWork] = {}  # of a step on a CPU
        self._note: Note | None = None  # of the step, where it has work
        self._seats: dict[str, int] = {}  # of those in `live`
        self._without_slots: dict[int, Live] = {}  # by seat
        self._progress = Progress()
        self.device_work = device_work  # where steps may be CUDA graphs; else `_host_work` does it
        self._host_work = HostWork(device)
        self.shared_layers = shared_layers

    def add(self, request_id: str, n_prompt: int, extra_args: Mapping[str, Any] | None) -> None:
        """Takes note of a new request whose specification `morfi.serve.plugin.admission.admit` made ready."""
        if not extra_args or "morfi" not in extra_args:
            return
        specification = dict(extra_args["morfi"])
        report, shard = specification.pop("report"), specification.pop("shard")
        directions = specification.pop("directions")
        steering, capture = from_json(specification)
        joint = join(steering, directions, n_prompt)
        live = Live(
            request_id,
            bool(report) and report != IN_CORE,
            joint.entries,
            joint.directions,
            capture,
            [] if capture is None else spans(capture.positions, n_prompt),
            None if shard is None else (shard, sample_of(request_id)),
        )
        self._progress.enter(live)
        self.live[request_id], self._seats[request_id] = live, live.seat
        self._without_slots[live.seat] = live

    def finish(self, request_id: str) -> None:
        """A request has ended, whatever the reason."""
        if self.shared_layers is not None:
            self.shared_layers.histories.forget(request_id)
        live = self.live.pop(request_id, None)
        if live is None:
            return
        del self._seats[request_id]
        self._give_up_slots(live)
        del self._without_slots[live.seat]
        self._progress.leave(live)
        if live.report:
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

    @property
    def has_work(self) -> bool:
        """Whether the step that has begun has anything to do, steered or shared."""
        return self._note is not None or self.shared_layers is not None

    def idle(self) -> None:
        """Leaves nothing to do for the pass that follows, until `begin` says otherwise."""
        self.work.clear()
        self._note = None
        if self.shared_layers is not None:
            self.shared_layers.begin(None)
        if self.device_work is not None:
            self.device_work.idle()

    def begin(
        self,
        request_ids: Sequence[str],
        starts: Sequence[int] | np.ndarray,
        counts: Sequence[int] | np.ndarray,
    ) -> None:
        """Works out the step's rows: request i has `counts[i]` of them, from the position `starts[i]` on."""
        self.work.clear()
        self._note = None
        if not self.live:
            return
        found = map(self._seats.get, request_ids, itertools.repeat(0))
        seats = np.fromiter(found, np.int64, len(request_ids))
        n_rows = np.array(counts, np.int64)  # vLLM writes to its own again while the step runs
        batch = Batch(seats, n_rows.cumsum() - n_rows, np.array(starts, np.int64), n_rows)
        reached = self._progress.begin(batch)
        self._take_slots(batch)
        if self.device_work is not None:
            self._note = self.device_work.begin(batch, reached)
            if self._note is not None:
                self._progress.add(self._note)
            return
        is_working = np.zeros(len(seats), bool)
        for index in np.flatnonzero(seats).tolist():
            live, first_row = self.live[request_ids[index]], int(batch.first_rows[index])
            part = {"reached": int(reached[index]), "first_row": first_row}
            part |= {"start": int(batch.starts[index]), "count": int(n_rows[index])}
            is_working[index] = add_work(self.work, live, layers=self.layers, **part)
        if self.work:
            self._note = Note(batch.only(is_working), 0, None, [])
        self._host_work.fill(self.work, batch.n_rows)

    def apply(self, layer: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """Steers in place the rows of hidden, and keeps what is captured.

        The residual stream is hidden + residual, or hidden alone where there is no residual.
        """
        if self.device_work is None:
            self._host_work.run(hidden, residual, layer, self.bank.directions)
        else:
            self.device_work.run(hidden, residual, self.device_work.lines[layer], self.bank.directions)

    def line_of(self, layer: int) -> torch.Tensor:
        """The tensor that tells a graph its layer, int32 [2]: its line of `morfi.kernels.residual.Tables`."""
        if self.device_work is None:
            return torch.tensor([-1, layer], dtype=torch.int32)
        return self.device_work.lines[layer]

    def apply_at(self, line: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """As `apply`, after the layer of this line."""
        if self.device_work is None:
            self.apply(int(line[1]), hidden, residual)
        else:
            self.device_work.run(hidden, residual, line, self.bank.directions)

    def end(self, input_ids: torch.Tensor) -> None:
        """Checks that the step's work was done, and hands out what was captured; `input_ids`: its tokens.

        On a GPU both wait until the device is known to have come that far.
        """
        if self.shared_layers is not None:
            self.shared_layers.check()
        if self._note is None:
            return
        if self.device_work is not None:
            self.device_work.end(self._note, input_ids if self.keeps else None)
        else:
            self._note.changed = self._host_work.changed.numpy().astype(np.uint16)
            self._progress.add(self._note)
            self._keep_all(input_ids)
        self._note = None
        self._tell()

    def _keep_all(self, input_ids: torch.Tensor) -> None:
        """Gives requests what a step on a CPU captured; raises MorfiError unless every layer did its work."""
        for layer, work in self.work.items():
            kept = self._host_work.captured(layer)
            place = 0
            for live, rows, positions in work.captured:
                assert kept is not None
                values = kept[place : place + len(rows)]
                place += len(rows)
                live.n_captured[layer] += len(positions)
                self._keep(live, layer, positions, input_ids[rows.start : rows.stop].tolist(), values)
        self.work.clear()

    def _tell(self, wait_for: int = 0) -> None:
        """Gives requests what is known of steps by now: what they changed and captured."""
        steps = None if self.device_work is None else self.device_work.steps
        for note in self._progress.tell(steps, wait_for):
            for one in note.captured:
                one.live.n_captured.update(dict.fromkeys(one.layers, len(one.positions)))
            if note.fetched is None:
                continue
            values, fetched = note.fetched.take()
            tokens = fetched.numpy()
            for one in note.captured:
                n, k = len(one.positions), len(one.layers)
                here = values[one.place : one.place + n * k].view(n, k, self.d_model)
                token_ids = tokens[one.rows].tolist()
                for index, layer in enumerate(one.layers):
                    # Nothing of the step's own memory, which is pinned, is kept.
                    self._keep(one.live, layer, one.positions, token_ids, here[:, index].clone())

    def _keep(
        self,
        live: Live,
        layer: int,
        positions: Sequence[int],
        token_ids: list[int],
        values: torch.Tensor,
    ) -> None:
        """Gives a request what was captured of it in a step after `layer`: `values` [n, d_model]."""
        if live.labels is not None and self.shards is not None:
            self.shards.add(layer, values, live.labels, positions, token_ids)
        elif self.keeps:
            live.captured.setdefault(layer, []).append(Rows(list(positions), token_ids, values))

    def unproven(self, live: Live, n_computed: int | None = None) -> str | None:
        """Why what was asked is not known to have been done up to position `n_computed`, None for the end.

        None where it was. Waits for steps in progress that computed one of these positions.
        """
        if self.device_work is None:
            return None  # each step is looked at in its `end`
        needed = self._progress.last_step(live, n_computed)
        try:
            self.device_work.steps.prove(needed)
        except MorfiError as error:
            return str(error)
        finally:
            self._tell(needed)
        return None

    def standing(self, live: Live) -> Standing:
        """How far a request is known to have come, and what was changed at its positions."""
        return self._progress.standing(live)

    def close_shards(self) -> str | None:
        """Writes what is left and ends with it; says what went wrong with the files, None for nothing."""
        if self.shards is None:
            return None
        failure = None
        if self.device_work is not None:
            last = self.device_work.steps.last
            try:
                self.device_work.steps.prove(last)
            except MorfiError as error:
                failure = str(error)
            self._tell(last)
        shards, self.shards = self.shards, None
        shards.close()
        return failure or shards.failure

    def _take_slots(self, batch: Batch) -> None:
        """Brings the directions of the step's requests into the bank, to stay there while nobody needs room.

        Raises RuntimeError where they are more than fit.
        """
        if not self._without_slots:
            return
        here = set(batch.seats.tolist())
        for seat in sorted(here & self._without_slots.keys()):
            live = self._without_slots[seat]
            live.slots = self.bank.hold(live.directions)
            if live.slots is None:  # of requests that wait, preempted or for a later step
                for other in self.live.values():
                    if other.seat not in here:
                        self._give_up_slots(other)
                live.slots = self.bank.hold(live.directions)
            if live.slots is None:
                raise RuntimeError(f"more directions in one step than fit: {self.bank.n_slots}")
            del self._without_slots[seat]
            if self.device_work is not None:
                self.device_work.requests.add(live, self.layers)
        self.bank.write()

    def _give_up_slots(self, live: Live) -> None:
        if live.slots is None:
            return
        self.bank.release(live.slots)
        live.slots = None
        self._without_slots[live.seat] = live
        if self.device_work is not None:
            self.device_work.requests.remove(live)

    def share(
        self,
        request_ids: Sequence[str],
        starts: Sequence[int],
        token_ids: Sequence[list[int]],
        cached: Callable[[int], bytes | None],
    ) -> None:
        """Leaves rows out of the layers up to the first one that has work in the step that `begin` began.

        Request i computes `token_ids[i]` from the position `starts[i]` on; `cached(i)` is as in `Histories`.
        """
        assert self.shared_layers is not None
        last = min(self.work, default=self.layers.stop - 1)
        histories = []
        for index, (request_id, start) in enumerate(zip(request_ids, starts, strict=True)):
            history = self.shared_layers.histories.extend(
                request_id, start, token_ids[index], functools.partial(cached, index)
            )
            live = self.live.get(request_id)
            if live is not None and any(entry.layer < last for entry in live.entries):
                history = None  # what it was before may differ in the layers up to `last`
            histories.append(history)
        self.shared_layers.begin(plan(histories, token_ids, last))
