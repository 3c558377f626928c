"""The gate: what is in flight is counted, too much is refused, and nothing passes while weights change."""

from __future__ import annotations

import asyncio

import pytest

from morfi.serve.http.gate import Gate, Limits, Refused


def test_what_is_in_flight_is_counted_until_it_is_over() -> None:
    async def run() -> None:
        gate = Gate(Limits(max_requests_in_flight=4))
        with gate.admitted(3, {"1", "2"}):
            assert (gate.n_in_flight, gate.n_vectors) == (3, 2)
            with gate.admitted(1, {"2", "3"}):
                assert (gate.n_in_flight, gate.n_vectors) == (4, 3)
                with (
                    pytest.raises(Refused, match="4 answers are being made") as refused,
                    gate.admitted(1, ()),
                ):
                    pass
                assert (refused.value.status, refused.value.reason) == (429, "in_flight")
                assert refused.value.retry_after_s >= 1
        assert (gate.n_in_flight, gate.n_vectors) == (0, 0)

    asyncio.run(run())


def test_limits_leave_room_for_all_that_an_engine_answers_at_a_time() -> None:
    assert Limits().at_least(64) == Limits()
    large = Limits().at_least(1024)
    assert (large.max_requests_in_flight, large.max_vectors) == (1024, 1024)


def test_more_answers_than_fit_at_all_are_no_matter_of_waiting() -> None:
    async def run() -> None:
        with pytest.raises(Refused) as refused, Gate(Limits(max_requests_in_flight=4)).admitted(5, ()):
            pass
        assert refused.value.status == 422

    asyncio.run(run())


def test_different_directions_in_flight_are_limited_and_shared_ones_count_once() -> None:
    async def run() -> None:
        gate = Gate(Limits(max_vectors=3))
        with gate.admitted(1, {"1", "2", "3"}), gate.admitted(1, {"1", "2"}):
            with pytest.raises(Refused) as refused, gate.admitted(1, {"3", "4"}):
                pass
            assert (refused.value.status, refused.value.reason) == (429, "vectors")
        with gate.admitted(1, {"4", "5", "6"}):
            assert gate.n_vectors == 3

    asyncio.run(run())


async def come(gate: Gate, n: int = 1) -> None:
    """A request that waits where it must, and is answered at once."""
    await gate.opened(n)
    with gate.admitted(n, ()):
        pass


def test_the_gate_closes_after_running_requests_and_new_ones_wait() -> None:
    async def run() -> None:
        gate, order = Gate(Limits()), []

        async def load() -> None:
            async with gate.closed("a checkpoint is being loaded"):
                await asyncio.sleep(0.01)
                order.append("loaded")
                assert gate.n_in_flight == 0

        async def late() -> None:
            await come(gate, 3)
            order.append("a late one")

        with gate.admitted(1, ()):
            loading = asyncio.create_task(load())
            await asyncio.sleep(0.01)
            waiting = asyncio.create_task(late())
            await asyncio.sleep(0.01)
            assert gate.n_waiting == 3
            with pytest.raises(Refused) as refused, gate.admitted(1, ()):
                pass
            assert (refused.value.status, refused.value.retry_after_s > 0) == (503, True)
            order.append("request ended")
        await asyncio.gather(loading, waiting)
        assert order == ["request ended", "loaded", "a late one"]
        assert gate.n_waiting == 0

    asyncio.run(run())


def test_requests_do_not_wait_for_ever_nor_in_any_number() -> None:
    async def run() -> None:
        gate = Gate(Limits(wait_s=0.05, max_requests_in_flight=4))
        async with gate.closed("A is being loaded"):
            waiting = [asyncio.create_task(come(gate, 2)) for _ in range(3)]
            found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in found] == [Refused] * 3
        words = [str(one) for one in found]
        assert "4 answers wait for it" in words[2]
        assert "A is being loaded, and that has taken more than 0.05 s" in words[0]
        assert gate.n_waiting == 0
        await come(gate)

    asyncio.run(run())


def test_a_load_gives_up_where_answers_run_on_and_those_that_waited_come_in_then() -> None:
    async def run() -> None:
        gate = Gate(Limits(drain_s=0.05))
        with gate.admitted(2, ()):
            with pytest.raises(Refused, match="2 answers were still running") as refused:
                async with gate.closed("A is being loaded"):
                    pytest.fail("it ran beside requests")
            assert (refused.value.status, refused.value.reason) == (409, "busy")
            assert "end_running=true" in str(refused.value)
            await come(gate)

    asyncio.run(run())


def test_answers_that_run_on_are_ended_where_the_load_says_so() -> None:
    async def run() -> None:
        gate, running = Gate(Limits(drain_s=0.05, end_s=0.05)), asyncio.Event()

        async def answer() -> None:
            with gate.admitted(1, ()):
                await running.wait()

        async def end_running() -> None:
            running.set()

        async def end_nothing() -> None: ...

        task = asyncio.create_task(answer())
        await asyncio.sleep(0)
        with pytest.raises(Refused, match="1 answers were still running"):
            async with gate.closed("A is being loaded", end_nothing):
                pytest.fail("it ran beside requests")
        async with gate.closed("A is being loaded", end_running):
            assert gate.n_in_flight == 0
        await task

    asyncio.run(run())


def test_a_second_load_is_refused_and_nothing_stays_closed() -> None:
    async def run() -> None:
        gate = Gate(Limits())
        async with gate.closed("A is being loaded"):
            with pytest.raises(Refused, match="A is being loaded") as second:
                async with gate.closed("B is being loaded"):
                    pytest.fail("two at once")
            assert second.value.status == 409
        await come(gate)

    asyncio.run(run())
