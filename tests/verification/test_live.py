"""Checks of a real engine on a tiny model: all hold, and each break on purpose is named by its line."""

from __future__ import annotations

import contextlib
import getpass
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import CommandLine

import morfi.serve.engine
import morfi.serve.without_plugin
from morfi.checkpoints import Checkpoint, resolve
from morfi.engine.operations import OPERATIONS
from morfi.engine.steering import Captured
from morfi.errors import MorfiError
from morfi.serve.plugin import block_keys, host_work, joint
from morfi.serve.weights import swap
from morfi.serve.weights.swap import LiveModel
from morfi.serve.without_plugin import seconds_without_plugin
from morfi.verification.checks import check_answers, check_capture, check_operations
from morfi.verification.lines import Line, Outcome
from morfi.verification.positions import check_positions
from morfi.verification.sharing import check_mixed_batch, check_prefix_cache
from morfi.verification.speed import beside_vllm, check_speed, check_waiting, distinct_prompts
from morfi.verification.subject import Subject, open_subject
from morfi.verification.swap import check_swap
from morfi.verification.verify import EXACT, Check

Break = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(scope="module")
def subject(
    tmp_path_factory: pytest.TempPathFactory, make_random: Callable[[Path, int], Path], starts_vllm: None
) -> Iterator[Subject]:
    """An engine on a random Llama of three layers, beside the same in transformers."""
    root = tmp_path_factory.mktemp("verification")
    folder = make_random(root / "model", 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORFI_CACHE", str(root / "cache"))
        checkpoint = resolve(str(folder), dtype="float32")
        with morfi.serve.engine.start_engine(checkpoint, context=256) as engine:
            yield open_subject(engine, checkpoint)


def differing(lines: Sequence[Line]) -> dict[str, str]:
    """What is said of each line that differs; everything else was checked and holds."""
    assert {line.outcome for line in lines} <= {Outcome.HOLDS, Outcome.DIFFERS}, lines
    return {line.name: line.says for line in lines if line.outcome == Outcome.DIFFERS}


@pytest.mark.parametrize("check", EXACT, ids=lambda check: check.__name__)
def test_everything_holds(subject: Subject, check: Check) -> None:
    lines = list(check(subject))
    assert lines
    assert differing(lines) == {}


def off_by(factor: float, operation: str) -> Break:
    """Makes one operation do `factor` of its work."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        right = host_work._factors

        def wrong(hidden: Any, residual: Any, tensors: Any, *more: Any) -> torch.Tensor:
            is_it = tensors.operations == OPERATIONS[operation].code
            return right(hidden, residual, tensors, *more) * torch.where(is_it, factor, 1.0)

        patch.setattr(host_work, "_factors", wrong)

    return apply


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_that_does_a_thousandth_too_much_is_named(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    off_by(1.001, operation)(monkeypatch)
    found = differing(list(check_operations(subject)))
    assert set(found) == {f"steering: {operation}", "steering: several at once"}


def test_the_share_of_the_change_that_was_made_is_said(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    off_by(1.25, "add")(monkeypatch)
    found = differing(list(check_operations(subject)))
    assert "the change is 1.25 times what was asked for" in found["steering: add"]


def the_wrong_layer(patch: pytest.MonkeyPatch) -> None:
    right = host_work.HostWork.run

    def wrong(self: Any, hidden: Any, residual: Any, layer: int, directions: Any) -> None:
        right(self, hidden, residual, {0: 1, 1: 0}.get(layer, layer), directions)

    patch.setattr(host_work.HostWork, "run", wrong)


def a_worker_that_lost_a_layer(patch: pytest.MonkeyPatch) -> None:
    def wrong(*given: Any) -> None:
        raise MorfiError("no worker reports that layer 1 was steered")

    patch.setattr("morfi.serve.engine.applied", wrong)


def the_layer_before(patch: pytest.MonkeyPatch) -> None:
    right = vars(morfi.serve.engine)["captured"]

    def wrong(*given: Any) -> tuple[Captured, ...]:
        found = right(*given)
        by_layer = {one.layer: one.values for one in found}
        return tuple(replace(one, values=by_layer.get(one.layer - 1, one.values)) for one in found)

    patch.setattr(morfi.serve.engine, "captured", wrong)


def the_position_after(patch: pytest.MonkeyPatch) -> None:
    right = vars(joint)["spans"]

    def wrong(*given: Any) -> list[tuple[int, int | None]]:
        return [(start + 1, None if stop is None else stop + 1) for start, stop in right(*given)]

    patch.setattr(joint, "spans", wrong)


def a_cache_that_knows_no_steering(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(block_keys, "block_key", lambda *_: None)


def a_swap_that_does_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(LiveModel, "swap", lambda self: None)


def a_whole_model_that_is_left_out(patch: pytest.MonkeyPatch) -> None:
    right = LiveModel.swap

    def wrong(self: LiveModel) -> None:
        if self.plan is not None and self.plan.source.model_dir is None:
            right(self)

    patch.setattr(LiveModel, "swap", wrong)


def a_whole_model_without_its_last_norm(patch: pytest.MonkeyPatch) -> None:
    right = vars(swap)["load_tensors"]

    def wrong(runner: Any, tensors: Any, expected: Any) -> None:
        norm = runner.get_model().model.norm.weight
        kept = norm.data.clone()
        right(runner, tensors, expected)
        norm.data.copy_(kept)

    patch.setattr(swap, "load_tensors", wrong)


def a_row_of_large_batches(patch: pytest.MonkeyPatch) -> None:
    right = host_work.HostWork._steer

    def wrong(self: Any, hidden: Any, residual: Any, tensors: Any, directions: Any) -> None:
        right(self, hidden, residual, tensors, directions)
        if len(tensors.where) > 100:
            hidden[tensors.where[-1]] *= 1.1

    patch.setattr(host_work.HostWork, "_steer", wrong)


@pytest.mark.parametrize(
    ("broken", "check", "name", "said"),
    [
        (the_wrong_layer, check_operations, "steering: add", "after layer 0"),
        (the_wrong_layer, check_capture, "capture", "came what transformers has after layer"),
        (a_worker_that_lost_a_layer, check_operations, "steering: project", "the engine failed: request 0"),
        (
            the_layer_before,
            check_capture,
            "capture",
            "came what transformers has after layer 0",
        ),
        (the_position_after, check_positions, "steering at positions: last_prompt", "asked for"),
        (the_position_after, check_positions, "steering at positions: chosen", "asked for"),
        (
            a_cache_that_knows_no_steering,
            check_prefix_cache,
            "prefix cache and steering",
            "the steered answer",
        ),
        (a_swap_that_does_nothing, check_swap, "swap: an adapter", "after layer 2"),
        (a_whole_model_that_is_left_out, check_swap, "swap: whole weights", "after layer 2"),
        (a_whole_model_without_its_last_norm, check_swap, "swap: whole weights", "tokens by"),
        (a_row_of_large_batches, check_mixed_batch, "mixed batch", "of request"),
    ],
)
def test_a_break_is_named(subject: Subject, broken: Break, check: Check, name: str, said: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        broken(patch)
        subject.engine.reset_prefix_cache()
        lines = list(check(subject))
    subject.engine.reset_prefix_cache()
    assert said in {line.name: line.says for line in lines if line.outcome == Outcome.DIFFERS}[name]


def test_other_weights_give_other_answers(subject: Subject) -> None:
    engine: Any = subject.engine
    runner = engine._llm.llm_engine.model_executor.driver_worker.model_runner
    weight = runner.get_model().model.norm.weight
    kept = weight.data.clone()
    try:
        weight.data[::2] *= 1.2
        assert "greedy answers" in differing(list(check_answers(subject)))
    finally:
        weight.data.copy_(kept)


def test_speed_is_measured_and_the_gpu_is_missed(subject: Subject) -> None:
    lines = [*check_speed(subject), *check_waiting(subject)]
    names = ["speed: plain", "speed: steered", "speed: captured", "synchronising calls"]
    assert [line.name for line in lines] == names
    assert {line.outcome for line in lines[:3]} == {Outcome.MEASURED}
    assert all(line.figures["share"] > 0.2 for line in lines[1:3])
    if not torch.cuda.is_available():
        assert (lines[3].outcome, lines[3].says) == (Outcome.UNCHECKED, "because there is no GPU")


def test_vllm_without_morfi_answers_the_same_prompts_in_a_process_of_its_own(subject: Subject) -> None:
    def alone(checkpoint: Checkpoint, overrides: dict[str, Any]) -> list[float]:
        prompts = distinct_prompts(subject)
        return seconds_without_plugin(
            checkpoint, prompts, context=256, overrides=overrides, n_tokens=8, n_rounds=3
        )

    lines = list(check_speed(subject))
    line = beside_vllm(lines, lambda: alone(subject.checkpoint, {}))
    assert line.outcome == Outcome.MEASURED, line
    rates = {"requests_per_s", "lowest_requests_per_s", "highest_requests_per_s"}
    assert set(line.figures) == rates | {"plain_share", "steered_share", "captured_share"}
    plain = next(one.figures["requests_per_s"] for one in lines if one.name == "speed: plain")
    assert line.figures["plain_share"] == pytest.approx(plain / line.figures["requests_per_s"])
    assert 0.01 < line.figures["plain_share"] < 100  # of one unit, however busy the machine is
    says = beside_vllm(lines, lambda: alone(subject.checkpoint, {"max_num_seqs": "many"})).says
    assert says.startswith("because vLLM without morfi could not answer: "), says
    assert beside_vllm([], list).says == "because there is no speed to compare it with"


@pytest.fixture
def run(
    subject: Subject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> CommandLine:
    """Runs a command in this process, with the engine that is there."""

    @contextlib.contextmanager
    def start(*_: Any, **more: Any) -> Iterator[Any]:
        yield subject.engine

    monkeypatch.setenv("MORFI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(morfi.serve.engine, "start_engine", start)
    monkeypatch.setattr(
        morfi.serve.without_plugin, "seconds_without_plugin", lambda *_, n_rounds, **__: [1.0] * n_rounds
    )
    return CommandLine(monkeypatch, capfd)


def test_the_object_says_what_held_and_nothing_private(run: CommandLine, subject: Subject) -> None:
    folder = subject.checkpoint.model_dir
    ended = run("verify", "--ckpt", folder, "--dtype", "float32", "--json")
    found = ended.json
    assert found["holds"]
    assert found["architecture"] == "LlamaForCausalLM"
    assert (found["n_layers"], found["d_model"], found["dtype"]) == (3, 64, "float32")
    assert {"morfi", "torch", "transformers"} <= set(found["versions"])
    names = [line["name"] for line in found["lines"]]
    assert len(set(names)) == len(names)
    assert names[-1] == "speed: vLLM without morfi"
    text = json.dumps(found)
    for private in (str(folder), folder.parent.name, socket.gethostname(), str(Path.home()), "/tmp"):
        assert private not in text
    assert getpass.getuser() not in text.split()


def test_a_break_ends_the_command_with_1_and_its_line(
    run: CommandLine, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    off_by(1.01, "clamp")(monkeypatch)
    ended = run("verify", "--ckpt", subject.checkpoint.model_dir, "--dtype", "float32")
    assert ended.code == 1
    assert "differ: steering: clamp, steering: several at once" in ended.err
    first = next(line for line in ended.out.splitlines() if line.startswith("differs"))
    assert first.split()[1:3] == ["steering:", "clamp"]
