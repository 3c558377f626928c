"""A step's work on a GPU: the tables that the kernel in every layer reads, CUDA graphs included."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from morfi.engine.steering import MAX_CAPTURED_LAYERS, MAX_ENTRIES, within
from morfi.kernels.expand import Part, expand
from morfi.kernels.residual import Directions, Tables, make_tables, residual_
from morfi.serve.plugin.device_requests import DeviceRequests
from morfi.serve.plugin.progress import Note
from morfi.serve.plugin.steps import Steps
from morfi.serve.plugin.transfers import Fetched, to_device
from morfi.serve.plugin.work import Batch, Captured

Kernel = Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor, Tables, Directions], None]
Expand = Callable[[torch.Tensor, torch.Tensor, Tables, int, int], None]
_COLUMN = {name: number for number, name in enumerate(Part._fields)}


class DeviceWork:
    """Tables at fixed addresses for steps of up to `n_tokens` tokens, and what the layers left in them."""

    def __init__(
        self,
        n_layers: int,
        n_tokens: int,
        d_model: int,
        device: torch.device,
        kernel: Kernel = residual_,
        *,
        expand: Expand = expand,
    ) -> None:
        self.tables = make_tables(n_layers, n_tokens, MAX_ENTRIES, MAX_CAPTURED_LAYERS, device)
        self.lines: list[torch.Tensor] = list(self.tables.active)
        self._copies = None if device.type == "cpu" else torch.Stream(device)
        self.steps = Steps(self.tables.marks, n_layers, self._copies)
        self.requests = DeviceRequests(device)
        self._d_model = d_model
        self._device = device
        self._kernel = kernel
        self._expand = expand
        self._is_active = False  # whether the tables give any layer something to do

    def begin(self, batch: Batch, reached: np.ndarray) -> Note | None:
        """Tells the layers what to do in the next step; None where they have nothing to do.

        `reached`: the positions that its requests have reached before, int64 [n].
        """
        self.requests.write()
        layers, is_working, is_captured = self.requests.concerned(batch)
        parts = self.requests.parts[batch.seats]
        parts[:, _COLUMN["first_row"]] = batch.first_rows
        parts[:, _COLUMN["n_rows"]] = batch.counts
        parts[:, _COLUMN["start"]] = batch.starts
        captured: list[Captured] = []
        n_captured = 0
        for index in np.flatnonzero(is_captured).tolist():
            one = self._captured(batch, index, int(reached[index]), n_captured)
            if not one.positions:  # a preempted request computes them again, to equal values
                parts[index, _COLUMN["n_spans"]] = 0  # there is no room for them
                continue
            parts[index, _COLUMN["captured_from"]] = one.positions[0]
            parts[index, _COLUMN["captured_row"]] = n_captured
            captured.append(one)
            layers.extend(one.layers)
            is_working[index] = True
            n_captured += len(one.positions) * len(one.layers)
        if not layers:
            self.idle()
            return None
        n_rows = batch.n_rows
        self.steps.begin(sorted(set(layers)), n_rows)
        self.tables.captured = torch.empty(n_captured, self._d_model, device=self._device)
        self._expand(
            to_device(parts, self._device), self.requests.records, self.tables, self.steps.mark, n_rows
        )
        self._is_active = True
        return Note(batch.only(is_working), self.steps.last, None, captured)

    def end(self, note: Note, input_ids: torch.Tensor | None) -> None:
        """All of the step is on its way; what it captured is fetched, unless its tokens are None."""
        self.steps.end()
        if note.captured and input_ids is not None:
            tokens = input_ids[: self.steps.n_tokens].clone()  # the next step's come to the same place
            note.fetched = Fetched([self.tables.captured, tokens], self._copies)

    def idle(self) -> None:
        """Leaves nothing to do for the layers; raises MorfiError where a step is known to lack its work."""
        self.steps.settle()
        if self._is_active:
            self.tables.now.zero_()
            self._is_active = False

    def run(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, line: torch.Tensor, directions: Directions
    ) -> None:
        """The work of the layer with this of `lines`: the kernel runs in every step, for graphs hold it."""
        self._kernel(hidden, residual, line, self.tables, directions)

    def _captured(self, batch: Batch, index: int, reached: int, place: int) -> Captured:
        """What a step captures of its request `index` from the position `reached` on."""
        live = self.requests.capturing[int(batch.seats[index])]
        start, stop = int(batch.starts[index]), int(batch.stops[index])
        parts = within(live.capture_spans, max(start, reached), stop)
        positions = [position for low, high in parts for position in range(low, high)]
        offset = int(batch.first_rows[index]) - start
        own = self.requests.parts[live.seat]
        layers = own[len(_COLUMN) :][: own[_COLUMN["n_layers"]]].tolist()
        return Captured(live, layers, positions, [offset + position for position in positions], place)
