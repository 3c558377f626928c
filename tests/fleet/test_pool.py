"""Work shared out over engines in this process, each of which may be lost at any time."""

from __future__ import annotations

import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import FakeEngine
from losing_engines import LosingEngines

from morfi.engine.protocol import Engine, Sampling
from morfi.engine.several import share_out
from morfi.errors import InputError, MorfiError
from morfi.fleet.line import Line
from morfi.fleet.pool import Pool


def prompt(text: str) -> list[int]:
    return [byte + 3 for byte in f"Q: {text}\nA:".encode()]


def ask(engine: Engine, unit: str) -> str:
    ((answer,),) = engine.generate([prompt(unit)], Sampling())
    return f"{unit}: {answer.text}"


def units(n: int) -> list[list[str]]:
    return [[f"{group}-{i}" for i in range(3)] for group in range(n)]


def shared(pool: Pool, groups: Any, work: Any = ask) -> list[tuple[str, Any]]:
    return [(done.unit, done.result) for done in share_out(pool, groups, work, lambda _: None)]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_unit_is_done_once_whatever_engines_are_lost(n: int) -> None:
    starting = LosingEngines()
    pool = Pool(starting, n)
    alone = [(unit, ask(FakeEngine({}), unit)) for group in units(20) for unit in group]
    try:
        found = shared(pool, units(20))
    except MorfiError as error:  # three times the same one
        assert "lost one after the other" in str(error)  # noqa: PT017
    else:
        assert sorted(found) == sorted(alone)
    pool.close()
    assert set(starting.ended) == set(range(n))


def test_an_engine_keeps_to_its_group_and_helps_at_the_end() -> None:
    line = Line([["a1", "a2", "a3"], [], ["b1", "b2"]])
    assert [line.next_for(0), line.next_for(1)] == ["a1", "b1"]
    assert not line.is_empty()
    assert [line.next_for(1), line.next_for(1), line.next_for(0)] == ["b2", "a3", "a2"]
    assert line.is_empty()
    line.put_back("a1")
    assert [line.is_empty(), line.next_for(1), line.next_for(1)] == [False, "a1", None]


def test_groups_and_results_are_handled_in_the_thread_that_asks() -> None:
    here, threads = threading.get_ident(), Counter[int]()

    def groups() -> Any:
        for group in units(4):
            assert threading.get_ident() == here
            yield group

    def work(engine: Engine, unit: str) -> None:
        threads[threading.get_ident()] += 1
        engine.generate([prompt(unit)], Sampling(), lambda n: finished.append((threading.get_ident(), n)))

    finished: list[tuple[int, int]] = []
    pool = Pool(LosingEngines(is_lost=lambda: False), 2)
    shared(pool, groups(), work)
    pool.close()
    assert here not in threads
    assert finished == [(here, 1)] * 12


def test_an_engine_that_comes_again_knows_what_the_others_do() -> None:
    lost = iter([False, False, True, *[False] * 100])  # the second direction's registration at one of them
    starting = LosingEngines(is_lost=lambda: next(lost))
    pool = Pool(starting, 2)
    first, second = (SimpleNamespace(sha256=name) for name in ("one", "two"))
    pool.register(first)  # type: ignore[arg-type]
    pool.register(second)  # type: ignore[arg-type]
    pool.load_checkpoint(SimpleNamespace(name="trained"))  # type: ignore[arg-type]
    assert len(starting.started) == 3
    living = dict(starting.started)
    for engine in living.values():
        assert set(engine.registered) == {"one", "two"}
        assert engine.served == "trained"
    pool.close()


def test_a_unit_that_ends_every_engine_is_given_up() -> None:
    starting = LosingEngines(is_lost=lambda: True)
    pool = Pool(starting, 2)
    said: list[str] = []
    with pytest.raises(MorfiError, match="3 engines were lost one after the other with the same questions"):
        list(share_out(pool, [["only"]], ask, said.append))
    assert said[0] == "engine 1 is lost (its process has ended); another one does its work again"
    pool.close()


def test_without_an_engine_that_can_start_again_the_work_ends_in_a_line() -> None:
    starting = LosingEngines(is_lost=lambda: True, refuses=1)
    pool = Pool(starting, 1)
    said: list[str] = []
    with pytest.raises(MorfiError, match="no engine is left"):
        list(share_out(pool, [["only"]], ask, said.append))
    assert said[1] == "engine 1 could not be started again: no such model"
    pool.close()


def test_a_refused_start_and_a_refused_unit_are_raised_as_they_are() -> None:
    with pytest.raises(InputError, match="no such model"):
        Pool(LosingEngines(refuses=0), 2)

    def work(engine: Engine, unit: str) -> None:
        raise InputError(unit)

    pool = Pool(LosingEngines(is_lost=lambda: False), 2)
    with pytest.raises(InputError, match="0-0"):
        shared(pool, [["0-0"]], work)
    pool.close()
