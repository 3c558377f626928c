"""What cannot fit a machine is refused, with what would."""

from __future__ import annotations

from dataclasses import replace

from planned_work import ANSWERS, LLAMA, TRAINING

from morfi.planning.cost import Setup, cost_of
from morfi.planning.fit import Machine, faults_of, most_disk
from morfi.planning.rates import GB, GPUS
from morfi.planning.shape import Shape
from morfi.planning.work import Work

SERVES = Work("split", "", starts=1, answering=ANSWERS)
TRAINS = Work("train", "", training=TRAINING, disk={"adapters": 3 * GB}, passing=GB)
LARGE = replace(LLAMA, n_parameters=70_553_706_496)


def said(work: Work, shape: Shape, setup: Setup, machine: Machine) -> list[str]:
    return list(faults_of([(work, cost_of(work, shape, setup, None))], shape, setup, machine))


def on(gpu: str) -> Machine:
    return Machine(gpu, None, GPUS[gpu], is_gpu=True)


def test_a_70b_on_one_card_of_80_gb_is_to_be_spread() -> None:
    (fault,) = said(SERVES, LARGE, Setup(2, gpu=True), on("h100"))
    assert "split needs 142.7 GB of GPU memory, and h100 has 80.0 GB" in fault
    assert 'engine = ["tensor_parallel_size=2"] on 2 of them' in fault
    assert said(SERVES, LARGE, Setup(2, gpu=True, n_gpus=2), on("h100")) == []
    assert said(SERVES, LLAMA, Setup(2, gpu=True), on("rtx-4090")) == []


def test_a_training_that_is_too_large_is_told_each_way_to_fit() -> None:
    wide = replace(TRAINS, training=replace(TRAINING, largest_part=1_600, largest_targets=240))
    setup = Setup(2, gpu=True, micro_batch=32)
    (fault,) = said(wide, LLAMA, setup, on("rtx-4090"))
    assert "train needs" in fault
    assert "micro-batch = 8" in fault
    assert "gradient-checkpointing = true" in fault
    assert "a100-40g" in fault
    assert said(wide, LLAMA, replace(setup, checkpointing=True), on("rtx-4090")) == []


def test_what_no_known_gpu_holds_is_said_so() -> None:
    huge = replace(LARGE, n_parameters=800 * GB)
    assert "nothing that is known here fits" in said(SERVES, huge, Setup(2, gpu=True), on("h200"))[0]


def test_too_little_memory_and_disk_of_this_machine_are_refused() -> None:
    small = Machine("here", None, None, is_gpu=False, host=4 * GB, disk=3 * GB)
    host, disk = said(TRAINS, LLAMA, Setup(2, gpu=False), small)
    assert "train needs" in host
    assert "4.0 GB are free: give a smaller micro-batch" in host
    assert "the stages write 4.0 GB, and 3.0 GB are free" in disk


def test_what_passes_counts_while_it_is_there() -> None:
    costs = [
        cost_of(work, LLAMA, Setup(2, gpu=False), None)
        for work in (TRAINS, Work("capture", "", disk={"captures": GB}))
    ]
    assert most_disk(costs) == 4 * GB
    assert most_disk([*costs, costs[0]]) == 8 * GB
