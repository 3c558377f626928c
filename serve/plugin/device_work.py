"""A step's work on a GPU: the tables that the kernel in every layer reads, CUDA graphs included."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch

from morfi.engine.steering import MAX_CAPTURED_LAYERS, MAX_ENTRIES
from morfi.kernels.residual import Directions, Tables, make_tables, residual_
from morfi.serve.plugin.steps import Steps
from morfi.serve.plugin.work import LayerWork

Kernel = Callable[[torch.Tensor, torch.Tensor | None, int, Tables, Directions], None]


class DeviceWork:
    """Tables at fixed addresses for steps of up to `n_tokens` tokens, and what the layers left in them."""

    def __init__(
        self, n_layers: int, n_tokens: int, d_model: int, device: torch.device, kernel: Kernel = residual_
    ) -> None:
        self.tables = make_tables(n_layers, n_tokens, MAX_ENTRIES, MAX_CAPTURED_LAYERS, d_model, device)
        self.steps = Steps(self.tables.marks, n_layers)
        self._kernel = kernel
        self._is_active = False  # whether the tables give any layer something to do
        self._n_filled = 0  # tokens of the tables that say anything

    def fill(self, work: Mapping[int, LayerWork]) -> None:
        """Tells the layers what to do in the next step; they have nothing to do where `work` names none."""
        if not work:
            self.idle()
            return
        n_tokens = 1 + max((row for one in work.values() for row in _rows(one)), default=-1)
        self.steps.begin(list(work), n_tokens)
        tables = self.tables
        n = max(n_tokens, self._n_filled)
        self._n_filled = n_tokens
        active = np.zeros(len(tables.active), np.int32)
        integers = np.full((3, n, MAX_ENTRIES), -1, np.int32)
        strengths, lows = np.zeros((2, n, MAX_ENTRIES), np.float32)
        users = np.zeros((n, MAX_ENTRIES), np.int32)
        capture = np.full((n, MAX_CAPTURED_LAYERS), -1, np.int32)
        before = np.zeros(n, np.int32)
        used = np.zeros(n, np.int64)  # entries of a token that are taken
        for layer, one in work.items():
            active[layer] = self.steps.mark
            if one.rows:
                rows = np.array(one.rows)
                places = used[rows] + _occurrence(rows)
                np.add.at(used, rows, 1)
                integers[0][rows, places] = layer
                integers[1][rows, places] = one.slots
                integers[2][rows, places] = one.operations
                strengths[rows, places] = one.strengths
                lows[rows, places] = one.lows
                users[rows, places] = one.users
            for live, rows_of_live, _ in one.captured:
                assert live.capture is not None
                here = slice(rows_of_live.start, rows_of_live.stop)
                capture[here, live.capture.layers.index(layer)] = layer
                before[here] = live.capture.before
        for to, values in (
            (tables.active, active),
            (tables.layers[:n], integers[0]),
            (tables.slots[:n], integers[1]),
            (tables.operations[:n], integers[2]),
            (tables.strengths[:n], strengths),
            (tables.lows[:n], lows),
            (tables.users[:n], users),
            (tables.changed[:n], np.zeros(n, np.int32)),
            (tables.capture_layers[:n], capture),
            (tables.capture_before[:n], before),
        ):
            to.copy_(torch.from_numpy(values))
        self._is_active = True

    def idle(self) -> None:
        """Leaves nothing to do for the layers; raises MorfiError where a step is known to lack its work."""
        self.steps.settle()
        if self._is_active:
            self.tables.active.zero_()
            self._is_active = False

    def run(
        self, hidden: torch.Tensor, residual: torch.Tensor | None, layer: int, directions: Directions
    ) -> None:
        """The work of one layer: the kernel runs in every step, so that a graph holds it."""
        self._kernel(hidden, residual, layer, self.tables, directions)

    def captured(self, layer: int, work: LayerWork) -> torch.Tensor:
        """The rows captured after `layer`, in the order of `work.captured`: float32 [n, d_model].

        Raises MorfiError unless the step did its work: what lies in the tables else is an earlier step's.
        """
        self.steps.prove(self.steps.last)
        parts = []
        for live, rows, _ in work.captured:
            assert live.capture is not None
            place = live.capture.layers.index(layer)
            parts.append(self.tables.captured[place, rows.start : rows.stop])
        return torch.cat(parts).cpu()


def _rows(work: LayerWork) -> Iterable[int]:
    yield from work.rows
    for _, rows, _ in work.captured:
        yield rows.stop - 1


def _occurrence(rows: np.ndarray) -> np.ndarray:
    """For each element, how many equal ones stand before it."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    first = np.searchsorted(ordered, ordered)
    found = np.empty(len(rows), np.int64)
    found[order] = np.arange(len(rows)) - first
    return found
