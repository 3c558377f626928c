"""The residual stream of one step: which rows are steered and captured, and whether they were.

A worker has one `ResidualState`. Before a forward pass `begin` works out the rows from the requests in the
batch; each decoder layer has `apply` called on its output, see `morfi.serve.plugin.operation`; after the pass
`end` checks that every layer did its part and hands what was captured to its requests. A step that did not do
all that was asked raises, and the engine answers nothing more: no request goes on unsteered. On a GPU that is
known only some time after the step, so there `unproven` has the last word on what a request is given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from morfi.engine.shards import ShardWriter
from morfi.engine.steering import from_json, spans
from morfi.errors import MorfiError
from morfi.serve.plugin.bank import Bank
from morfi.serve.plugin.changes import Changes
from morfi.serve.plugin.device_work import DeviceWork
from morfi.serve.plugin.host_work import HostWork
from morfi.serve.plugin.joint import join
from morfi.serve.plugin.requested import IN_CORE, sample_of
from morfi.serve.plugin.shared_layers import SharedLayers, plan
from morfi.serve.plugin.work import LayerWork, Live, Rows, Steered, add_work


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
        self._steered: Steered = []  # in this step
        self.device_work = device_work  # where steps may be CUDA graphs; else `_host_work` does it
        self._host_work = HostWork(device)
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
            bool(report) and report != IN_CORE,
            joint.entries,
            joint.directions,
            capture,
            [] if capture is None else spans(capture.positions, n_prompt),
            None if shard is None else (shard, sample_of(request_id)),
        )

    def finish(self, request_id: str) -> None:
        """A request has ended, whatever the reason."""
        if self.shared_layers is not None:
            self.shared_layers.histories.forget(request_id)
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
    ) -> None:
        """Works out the step's rows: request i has `counts[i]` of them, from the position `starts[i]` on."""
        self.work.clear()
        if not self.live:
            return
        offset = 0
        used: dict[str, bytes] = {}
        planned: Steered = []
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
            part = {"first_row": first_row, "start": start, "count": count}
            if add_work(self.work, live, slots=slots, layers=self.layers, **part):
                with_work.append((live, start))
            if not live.reached:
                live.first = start
            live.reached = max(live.reached, start + count)
        self._steered = [one for one in planned if one[0].entries]
        if self.device_work is not None:
            self.device_work.fill(self.work)
            steps = self.device_work.steps
            for live, start in with_work:
                unproven = [step for step in live.steps if step[0] > steps.proven]
                live.steps = [*unproven, (steps.last, start)]
            return
        self._host_work.fill(self.work, offset)

    def apply(self, layer: int, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        """Steers in place the rows of hidden, and keeps what is captured.

        The residual stream is hidden + residual, or hidden alone where there is no residual.
        """
        work = self._host_work if self.device_work is None else self.device_work
        work.run(hidden, residual, layer, self.bank.directions)

    def end(self, input_ids: torch.Tensor) -> None:
        """Checks that the step's work was done, and hands out what was captured; `input_ids`: its tokens."""
        if self.shared_layers is not None:
            self.shared_layers.check()
        if self.work and self.device_work is not None:
            self.device_work.steps.end()
            self.changes.add(self._steered, None, self.device_work.steps)
        elif self.work:
            self.changes.add(self._steered, self._host_work.changed.tolist(), None)
        for layer, work in self.work.items():
            kept = self._kept(layer, work)
            if kept is None:
                continue
            place = 0
            for live, rows, positions in work.captured:
                values = kept[place : place + len(rows)]
                place += len(rows)
                token_ids = input_ids[rows.start : rows.stop].tolist()
                live.n_captured[layer] = live.n_captured.get(layer, 0) + len(rows)
                if live.labels is not None and self.shards is not None:
                    self.shards.add(layer, values, live.labels, positions, token_ids)
                elif self.keeps:
                    live.captured.setdefault(layer, []).append(Rows(list(positions), token_ids, values))
        self.work.clear()

    def _kept(self, layer: int, work: LayerWork) -> torch.Tensor | None:
        """The rows captured after `layer`, None for none; raises MorfiError where its work was not done."""
        if self.device_work is None:
            return self._host_work.captured(layer)
        return self.device_work.captured(layer, work) if work.captured else None

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

    def share(
        self,
        request_ids: Sequence[str],
        starts: Sequence[int],
        token_ids: Sequence[Sequence[int]],
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
