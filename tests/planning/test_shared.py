"""What requests that are equal up to a layer share, as it is counted and as it is paid for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from planned_work import LLAMA, WORKS

from morfi.planning.cost import Setup, cost_of
from morfi.planning.counts import n_repeated
from morfi.planning.rates import GPUS, gpu_rates


def test_a_prompt_is_computed_once_in_every_step_that_begins_with_its_question() -> None:
    # 256 at once of 4 tokens: 64 begin in a step, so the 640 of a question in 10 steps, the 20 in one.
    assert n_repeated(3, 3 * 640, 4.0) == pytest.approx(3 * 640 - 3 * 10)
    assert n_repeated(3, 3 * 20, 4.0) == pytest.approx(3 * 20 - 3)
    assert n_repeated(3, 0, 4.0) == n_repeated(0, 0, 4.0) == 0


def test_tokens_that_are_shared_take_no_time_but_that_of_the_output_head() -> None:
    work, _ = WORKS["answering"]
    done = work.answering
    decoded = done.answer_tokens - done.answers
    whole, shared = (
        cost_of(
            replace(work, answering=replace(done, skipped_answers=n)),
            LLAMA,
            Setup(2, gpu=True),
            replace(gpu_rates(GPUS["h100"]), answer_bytes_per_s=1e30),
        ).seconds
        for n in (0, decoded)
    )
    assert whole is not None
    assert shared is not None
    share = LLAMA.n_head / (LLAMA.n_body + LLAMA.n_head)
    assert shared["answers"] / whole["answers"] == pytest.approx(share)
    assert shared["prompts"] == whole["prompts"]
