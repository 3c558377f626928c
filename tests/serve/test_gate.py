"""The gate: what is in flight is counted, too much is refused, and nothing passes while weights change."""

from __future__ import annotations

import asyncio

import pytest

from morfi.serve.gate import Gate, Limits, Refused


def test_what_is_in_flight_is_counted_until_it_is_over() -> None:
    async def run() -> None:
        gate = Gate(Limits(max_requests_in_flight=4))
        with gate.admitted(3, {1, 2}):
            assert (gate.n_in_flight, gate.n_vectors) == (3, 2)
            with gate.admitted(1, {2, 3}):
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


def test_more_answers_than_fit_at_all_are_no_matter_of_waiting() -> None:
    async def run() -> None:
        with pytest.raises(Refused) as refused, Gate(Limits(max_requests_in_flight=4)).admitted(5, ()):
            pass
        assert refused.value.status == 422

    asyncio.run(run())


def test_different_latents_in_flight_are_limited_and_shared_ones_count_once() -> None:
    async def run() -> None:
        gate = Gate(Limits(max_vectors=3))
        with gate.admitted(1, {1, 2, 3}), gate.admitted(1, {1, 2}):
            with pytest.raises(Refused) as refused, gate.admitted(1, {3, 4}):
                pass
            assert (refused.value.status, refused.value.reason) == (429, "vectors")
        with gate.admitted(1, {4, 5, 6}):
            assert gate.n_vectors == 3

    asyncio.run(run())


def test_the_gate_closes_after_running_requests_and_before_new_ones() -> None:
    async def run() -> None:
        gate, order = Gate(Limits()), []

        async def load() -> None:
            async with gate.closed("a checkpoint is being loaded"):
                order.append("loading")
                assert gate.n_in_flight == 0

        with gate.admitted(1, ()):
            task = asyncio.create_task(load())
            await asyncio.sleep(0.01)
            with pytest.raises(Refused, match="is being loaded") as refused, gate.admitted(1, ()):
                pass
            assert (refused.value.status, refused.value.retry_after_s > 0) == (503, True)
            order.append("request ended")
        await task
        assert order == ["request ended", "loading"]
        with gate.admitted(1, ()):
            pass

    asyncio.run(run())


def test_a_second_load_and_one_that_waits_too_long_are_refused_and_nothing_stays_closed() -> None:
    async def run() -> None:
        gate = Gate(Limits(drain_s=0.05))
        with gate.admitted(2, ()):
            with pytest.raises(Refused, match="2 answers were still running") as refused:
                async with gate.closed("A is being loaded"):
                    pytest.fail("it ran beside requests")
            assert refused.value.status == 503
            with gate.admitted(1, ()):
                pass
        async with gate.closed("A is being loaded"):
            with pytest.raises(Refused, match="A is being loaded") as second:
                async with gate.closed("B is being loaded"):
                    pytest.fail("two at once")
            assert second.value.status == 409

    asyncio.run(run())
