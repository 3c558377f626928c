"""No step that steers or captures makes the host wait for the device, or the device for the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

from morfi.engine.directions import Direction, pack
from morfi.engine.steering import Capture, Steering, to_json
from morfi.serve.plugin import bank, device_requests, device_work, steps
from morfi.serve.plugin.device_work import DeviceWork
from morfi.serve.plugin.step import ResidualState

CPU = torch.device("cpu")
N_LAYERS, D_MODEL, N_PROMPT = 3, 16, 4
WAITING = {
    *("tolist", "item", "cpu", "numpy", "to", "copy_", "nonzero", "unique", "masked_select", "pin_memory"),
    *("__bool__", "__int__", "__float__", "__index__", "__array__", "__repr__", "__contains__"),
}


class OnDevice(torch.Tensor):
    """Stands for a tensor of a GPU: whoever asks for its numbers would wait for it."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert func.__name__ not in WAITING, f"{func.__name__} waits for the device"
        if func.__name__ == "__setitem__":
            assert not isinstance(args[2], torch.Tensor) or isinstance(args[2], cls), "copies from the host"
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


class OnTheWay:
    """Stands for `Fetched` of a GPU that is still busy, until somebody waits."""

    n_waited = 0

    def __init__(self, tensors: Sequence[torch.Tensor], _: object) -> None:
        self._tensors = [tensor.as_subclass(torch.Tensor) for tensor in tensors]
        self.is_there = False

    def wait(self) -> None:
        OnTheWay.n_waited += not self.is_there
        self.is_there = True

    def take(self) -> list[torch.Tensor]:
        self.wait()
        return self._tensors


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> ResidualState:
    """That of a worker on a device whose layers only say that they ran."""
    for module in (bank, device_requests, device_work):
        monkeypatch.setattr(module, "to_device", lambda values, _: torch.tensor(values).as_subclass(OnDevice))
    for module in (device_work, steps):
        monkeypatch.setattr(module, "Fetched", OnTheWay)
    monkeypatch.setattr(OnTheWay, "n_waited", 0)

    def run(_hidden: object, _residual: object, line: Any, tables: Any, _directions: object) -> None:
        tables.ran.as_subclass(torch.Tensor)[int(line.as_subclass(torch.Tensor)[1])] = work.steps.mark

    work = DeviceWork(N_LAYERS, 256, D_MODEL, CPU, run, expand=lambda *_: None)
    work.steps._marks = work.steps._marks.as_subclass(OnDevice)
    work.requests.records = work.requests.records.as_subclass(OnDevice)
    made = ResidualState(range(N_LAYERS), D_MODEL, 64, CPU, work)
    for table in (work.tables, made.bank.directions):
        for field in fields(table):
            object.__setattr__(table, field.name, getattr(table, field.name).as_subclass(OnDevice))
    return made


def test_no_step_that_steers_or_captures_waits_for_the_device(state: ResidualState) -> None:
    names = [f"r{number}" for number in range(20)]
    for number, name in enumerate(names):
        direction = Direction(torch.full((D_MODEL,), 1.0 + number), torch.ones(D_MODEL))
        asked = [Steering(1, direction.sha256, strength=1.0), Steering(2, direction.sha256, "ablate")]
        ready = {**to_json(asked, Capture((0, 2))), "report": True, "shard": None}
        state.add(name, N_PROMPT, {"morfi": {**ready, "directions": {direction.sha256: pack(direction)}}})
    hidden, start = torch.zeros(80, D_MODEL), 0
    for count in (N_PROMPT, 1, 1):
        state.idle()
        state.begin(names, np.full(20, start), np.full(20, count))
        for layer in range(N_LAYERS):
            state.apply(layer, hidden, None)
        state.end(torch.arange(80).as_subclass(OnDevice))
        start += count
    assert OnTheWay.n_waited == 0
    first, *_ = state.take(names)
    assert first is not None
    assert state.unproven(first, N_PROMPT) is None
    assert OnTheWay.n_waited == 2, "the marks and the rows of the prompt's step"
    for layer in (0, 2):
        (rows,) = first.captured[layer]
        assert (rows.positions, rows.token_ids) == ([N_PROMPT - 1], [N_PROMPT - 1])
