"""What the requests of a worker ask for, as a device has it: written when they come, read in every step."""

from __future__ import annotations

import numpy as np
import torch

from morfi.engine.steering import MAX_CAPTURED_LAYERS
from morfi.kernels.expand import ENDLESS, Part, Record
from morfi.serve.plugin.progress import enlarged
from morfi.serve.plugin.transfers import to_device
from morfi.serve.plugin.work import Batch, Live

_LAYER, _FIRST, _STOP = (Record._fields.index(name) for name in ("layer", "first", "stop"))
_OWNER = len(Record._fields)  # a row more, that the host alone has: the seat, 0 for a record of no one
_NO_LAYER = -1  # of spans that are captured


class DeviceRequests:
    """The table of records on the device, and where in it each request's are, by its seat."""

    def __init__(self, device: torch.device) -> None:
        self.records = torch.zeros(64, len(Record._fields), dtype=torch.int32, device=device)
        self.parts = np.zeros((16, len(Part._fields) + MAX_CAPTURED_LAYERS), np.int32)
        self.capturing: dict[int, Live] = {}
        self._on_host = np.zeros((len(Record._fields) + 1, 64), np.int32)
        self._free: dict[int, list[int]] = {}  # places by how many records they have room for
        self._taken: dict[int, tuple[int, int]] = {}  # by seat: place and room
        self._end = 0  # of all places
        self._new: list[range] = []  # records not on the device yet

    def add(self, live: Live, layers: range) -> None:
        """Takes a request in as far as it concerns `layers`; `write` brings it to the device."""
        entries = [entry for entry in live.entries if entry.layer in layers]
        captured = [] if live.capture is None else [one for one in live.capture.layers if one in layers]
        spans = [one for entry in entries for one in entry.spans]
        places = live.capture_spans if captured else []
        n_entries, n = len(spans), len(spans) + len(places)
        place = self._take(live.seat, n)
        here = self._on_host[:, place : place + n]
        here[:] = 0
        if entries:
            assert live.slots is not None
            each = [len(entry.spans) for entry in entries]
            amounts = np.array([(entry.strength, entry.low) for entry in entries], np.float32).view(np.int32)
            whats = [(one.layer, live.slots[one.direction], one.operation.code) for one in entries]
            columns = [*np.array(whats).T, *amounts.T, [entry.users for entry in entries]]
            here[:_FIRST, :n_entries] = np.repeat(np.array(columns, np.int32), each, axis=1)
        ends = [(first, ENDLESS if stop is None else stop) for first, stop in [*spans, *places]]
        here[_FIRST:_OWNER] = np.array(ends, np.int32).reshape(n, 2).T
        here[_LAYER, n_entries:] = _NO_LAYER
        here[_OWNER] = live.seat
        self._new.append(range(place, place + n))
        if live.seat >= len(self.parts):
            self.parts = enlarged(self.parts, 2 * live.seat)
        part = Part(0, 0, 0, place, n_entries, place + n_entries, len(places), len(captured), 0, 0, 0)
        before = live.capture is not None and live.capture.before
        self.parts[live.seat, : len(part)] = part._replace(before=before)
        self.parts[live.seat, len(part) : len(part) + len(captured)] = captured
        if captured:
            self.capturing[live.seat] = live

    def remove(self, live: Live) -> None:
        """Gives up what a request had; it can be added again."""
        place, room = self._taken.pop(live.seat)
        self._on_host[_OWNER, place : place + room] = 0
        self._free.setdefault(room, []).append(place)
        self.parts[live.seat] = 0
        self.capturing.pop(live.seat, None)

    def write(self) -> None:
        """Brings new records to the device, all in one copy, for which the host does not wait."""
        if not self._new:
            return
        places = np.concatenate([np.arange(one.start, one.stop) for one in self._new])
        self._new.clear()
        values = np.concatenate([self._on_host[:_OWNER, places], places[None]]).T
        staged = to_device(np.ascontiguousarray(values, np.int32), self.records.device)
        self.records.index_copy_(0, staged[:, -1].long(), staged[:, :-1])

    def concerned(self, batch: Batch) -> tuple[list[int], np.ndarray, np.ndarray]:
        """The layers after which a step steers, which requests it steers and which it captures: bool [n]."""
        starts, stops = np.zeros((2, len(self.parts)), np.int32)
        starts[batch.seats], stops[batch.seats] = batch.starts, batch.stops
        starts[0] = stops[0] = 0
        here = self._on_host[:, : self._end]
        owners = here[_OWNER]
        hit = (here[_FIRST] < stops[owners]) & (here[_STOP] > starts[owners])
        owners, layers = owners[hit], here[_LAYER][hit]
        is_steered, is_captured = np.zeros((2, len(self.parts)), bool)
        is_steered[owners[layers != _NO_LAYER]] = True
        is_captured[owners[layers == _NO_LAYER]] = True
        steered = np.flatnonzero(np.bincount(layers - _NO_LAYER)[1:]).tolist()
        return steered, is_steered[batch.seats], is_captured[batch.seats]

    def _take(self, seat: int, n: int) -> int:
        """The first of `n` records in a row that are no one's."""
        room = 1 << max(n - 1, 0).bit_length()
        free = self._free.get(room)
        if free:
            place = free.pop()
        else:
            place, self._end = self._end, self._end + room
        self._taken[seat] = (place, room)
        if self._end > len(self.records):
            n_more = max(self._end, 2 * len(self.records)) - len(self.records)
            self.records = torch.nn.functional.pad(self.records, (0, 0, 0, n_more))
            self._on_host = np.pad(self._on_host, ((0, 0), (0, n_more)))
        return place
