"""Seconds and memory of a stage: by hand on one GPU, and growing with everything that there is more of."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
from planned_work import ANSWERS, LLAMA, TRAINING, WORKS

from morfi.checkpoints.base_room import Room
from morfi.planning.cost import Setup, cost_of, serving_bytes, training_bytes
from morfi.planning.rates import GPUS, gpu_called, gpu_rates
from morfi.planning.swaps import swap_on
from morfi.planning.work import Answering, Work


def test_answers_on_an_h100_take_what_a_person_reckons() -> None:
    found = cost_of(WORKS["answering"][0], LLAMA, Setup(2, gpu=True), gpu_rates(GPUS["h100"])).seconds
    assert found is not None
    # 200,000 tokens x 2 x 6.98e9 + 10,000 heads x 2 x 128,256 x 4,096 = 2.8023e15, at 0.4 x 989e12.
    assert found["prompts"] == pytest.approx((2.79184e15 + 1.05067e13) / 3.956e14, rel=1e-4)
    # 30,000 tokens: 1.501e10 operations each (37.9 us), or 16.06 GB a step of 1,024 (9.4 us): the former.
    assert found["answers"] == pytest.approx(30_000 * 1.50098e10 / 3.956e14, rel=1e-3)
    # Weights of 16.06 GB, read at 1.5 GB/s beside 90 s; a whole model that is swapped in is read as well.
    assert found["engine start"] == pytest.approx(90 + 16.0605 / 1.5, rel=1e-4)
    assert found["swaps"] == pytest.approx(16.0605 / 1.5, rel=1e-4)


def test_few_requests_are_bound_by_the_memory_of_the_gpu() -> None:
    few = Work("sweep", "", answering=Answering(answers=8, prompt_tokens=80, answer_tokens=88))
    found = cost_of(few, LLAMA, Setup(2, gpu=True), gpu_rates(GPUS["h100"])).seconds
    assert found is not None
    assert found["answers"] == pytest.approx(10 * 16.0605e9 / (0.5 * 3.35e12), rel=1e-3)


@pytest.mark.parametrize("kind", WORKS)
def test_more_of_anything_never_takes_less(kind: str) -> None:
    work, part = WORKS[kind]
    rates = gpu_rates(GPUS["a100-80g"])
    least = cost_of(work, LLAMA, Setup(2, gpu=True), rates)
    own = getattr(work, part)
    for name in own.__dataclass_fields__:
        if name in ("cached", "skipped", "skipped_answers"):
            continue
        more = replace(work, **{part: replace(own, **{name: 2 * getattr(own, name) + 1})})
        cost = cost_of(more, LLAMA, Setup(2, gpu=True), rates)
        assert cost.total_s is not None
        assert least.total_s is not None
        assert (cost.total_s, cost.gpu) >= (least.total_s - 1e-9, least.gpu), name
    larger = replace(LLAMA, n_parameters=2 * LLAMA.n_parameters, n_body=2 * LLAMA.n_body)
    assert cost_of(work, larger, Setup(2, gpu=True), rates).host >= least.host


def test_memory_of_serving_and_training_by_hand() -> None:
    weights = 2 * 8_030_261_248
    assert serving_bytes(ANSWERS, LLAMA, Setup(2, gpu=True)) == (
        weights + 64 * 100 * 65_536 * 2 + 2048 * (4 * 4096 + 2 * 14336) * 2
    )
    setup = Setup(2, gpu=True, rank=32, checkpointing=True)
    lora = 16 * 32 * 32 * (8192 + 18432)
    a_layer = 160 * (18432 * 6 + 2 * (4 * 14336 + 8 * 4096))
    inputs = 160 * 4096 * 2 * 32
    assert training_bytes(TRAINING, LLAMA, setup) == weights + lora + a_layer + inputs + 24 * 128256 * 10
    assert training_bytes(TRAINING, LLAMA, replace(setup, checkpointing=False)) == (
        weights + lora + 32 * a_layer + 24 * 128256 * 10
    )


def test_no_rates_give_no_seconds_but_memory_all_the_same() -> None:
    cost = cost_of(WORKS["training"][0], LLAMA, Setup(2, gpu=True), None)
    assert cost.total_s is None
    assert cost.gpu > 2 * LLAMA.n_parameters


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA H100 80GB HBM3 (79 GiB) x 1", "h100"),
        ("NVIDIA H200 (140 GiB) x 8", "h200"),
        ("NVIDIA A100-SXM4-80GB (79 GiB) x 1", "a100-80g"),
        ("NVIDIA A100-SXM4-40GB (39 GiB) x 1", "a100-40g"),
        ("NVIDIA L40S (44 GiB) x 1", "l40s"),
        ("NVIDIA GeForce RTX 4090 (24 GiB) x 1", "rtx-4090"),
        ("NVIDIA L4 (22 GiB) x 1", None),
        ("AMD EPYC x 2", None),
    ],
)
def test_a_gpu_is_known_by_what_cuda_calls_it(device: str, name: str | None) -> None:
    assert gpu_called(device) == (None if name is None else GPUS[name])


def test_a_swap_in_place_takes_what_a_person_reckons() -> None:
    on = functools.partial(swap_on, shape=LLAMA, number_bytes=2, rank=32, targets=("down_proj",))
    numbers = 32 * 14336 * 4096
    at = {room: on(room, GPUS["h100"]) for room in Room}
    assert {one.reads for one in at.values()} == {2 * numbers}
    # 34 bytes a number at 0.5 x 3.35 TB/s; an adapter of 32 x 32 x 18,432 numbers in float32 at 1.5 GB/s.
    least = 34 * numbers / 1.675e12 + 4 * 32 * 32 * 18_432 / 1.5e9
    assert at[Room.DEVICE].seconds == pytest.approx(least)
    assert at[Room.PINNED].seconds == pytest.approx(least + 2 * numbers / 32e9)
    assert at[Room.FILES].seconds == pytest.approx(least + 2 * numbers / 1.5e9)
    work = replace(WORKS["answering"][0], swaps=3)
    cost = cost_of(work, LLAMA, Setup(2, gpu=True, swap=at[Room.PINNED]), gpu_rates(GPUS["h100"]))
    assert cost.seconds is not None
    assert cost.seconds["swaps"] == pytest.approx(3 * at[Room.PINNED].seconds)
    assert cost.host - cost_of(work, LLAMA, Setup(2, gpu=True), None).host == 2 * numbers


def test_the_base_is_kept_where_it_fits() -> None:
    on = functools.partial(swap_on, None, shape=LLAMA, number_bytes=2, rank=32, targets=("all-linear",))
    assert on(GPUS["h100"]).room == Room.PINNED  # vLLM leaves 6.4 GB
    assert on(GPUS["h100"], utilization=0.75).room == Room.DEVICE
    assert on(GPUS["h100"], host=8 * 10**9).room == Room.FILES
    assert on(GPUS["h100"], n_gpus=4).room == Room.DEVICE
    assert on(GPUS["h100"], n_gpus=4).reads == on(GPUS["h100"]).reads // 4
