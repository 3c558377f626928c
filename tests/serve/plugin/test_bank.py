"""The table of directions: who holds a row keeps it, and what nobody holds goes when another needs room."""

from __future__ import annotations

import torch

from morfi.engine.directions import Direction, pack
from morfi.kernels.residual import Numbers
from morfi.serve.plugin.bank import Bank

D_MODEL = 4
PACKED = {
    name: pack(
        Direction(torch.full((D_MODEL,), float(number)), torch.ones(D_MODEL), bias=number, threshold=0.5)
    )
    for number, name in enumerate("abcd", start=1)
}


def some(names: str) -> dict[str, bytes]:
    return {name: PACKED[name] for name in names}


def test_what_is_held_stays_and_the_longest_unheld_goes() -> None:
    bank = Bank(3, D_MODEL, torch.device("cpu"))
    first = bank.hold(some("abc"))
    assert first is not None
    assert bank.hold(some("d")) is None
    bank.release("a")
    bank.release("b")
    assert bank.hold(some("ad")) == {"a": first["a"], "d": first["b"]}, "b goes, for a is wanted"
    assert bank.hold(some("b")) is None
    assert bank.hold(some("a")) == {"a": first["a"]}
    bank.release("a")
    assert bank.hold(some("b")) is None, "a is held twice"
    assert bank.n_used == 3


def test_all_new_directions_are_written() -> None:
    bank = Bank(3, D_MODEL, torch.device("cpu"))
    slots = bank.hold(some("bc"))
    assert slots is not None
    bank.write()
    for name, number in (("b", 2), ("c", 3)):
        rows = bank.directions
        assert rows.vectors[slots[name]].tolist() == [number] * D_MODEL
        assert rows.encoders[slots[name]].tolist() == [1] * D_MODEL
        numbers = Numbers(*rows.numbers[slots[name]].tolist())
        assert numbers[:3] == (number, 0.5, torch.tensor(1 / (4 * number**2)))
    assert not rows.vectors[3 - sum(slots.values())].any()


def test_what_is_forgotten_while_it_is_held_is_emptied_when_nobody_holds_it() -> None:
    bank = Bank(2, D_MODEL, torch.device("cpu"))
    bank.hold(some("a"))
    bank.write()
    bank.forget("a")
    assert bank.directions.vectors.any()
    bank.release("a")
    assert not bank.directions.vectors.any()
    assert bank.n_used == 0
    bank.forget("b")
    assert bank.hold(some("cd")) is not None
