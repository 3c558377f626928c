"""A model of one layer in bfloat16: what can be checked there is, within what the dtype itself is off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from morfi.checkpoints import resolve
from morfi.engine.operations import OPERATIONS
from morfi.serve.engine import start_engine
from morfi.serve.plugin import host_work
from morfi.verification.checks import check_operations
from morfi.verification.lines import Outcome
from morfi.verification.subject import Subject, open_subject
from morfi.verification.tolerance import ROOM, ROUNDOFF, distances, root_mean_square
from morfi.verification.verify import EXACT


@pytest.fixture(scope="module")
def subject(
    tmp_path_factory: pytest.TempPathFactory, make_random: Callable[[Path, int], Path], starts_vllm: None
) -> Iterator[Subject]:
    """An engine on a random Llama of one layer, beside the same in transformers."""
    root = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORFI_CACHE", str(root / "cache"))
        checkpoint = resolve(str(make_random(root / "model", 1)), dtype="bfloat16")
        with start_engine(checkpoint, context=256) as engine:
            yield open_subject(engine, checkpoint)


def test_the_tolerance_is_some_times_what_rounding_does(subject: Subject) -> None:
    prompt = subject.prompts[0]
    expected = subject.standard.run(prompt)
    assert subject.standard.own is not None
    off = distances(subject.standard.own.run(prompt).after[0], expected.streams.after[0])
    assert expected.allowed[0] >= ROOM * ROUNDOFF["bfloat16"]
    assert expected.allowed[0] == pytest.approx(ROOM * float(root_mean_square(off)))
    assert ROOM * ROUNDOFF["bfloat16"] <= expected.gap < 1


def test_all_that_one_layer_allows_to_check_holds(subject: Subject) -> None:
    lines = {line.name: line for check in EXACT for line in check(subject)}
    other = {name: line.says for name, line in lines.items() if line.outcome != Outcome.HOLDS}
    assert other == {
        "prefix cache and steering": "because no steering of the cached beginning changes the answer"
    }


def test_a_twentieth_too_much_is_found(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    right = host_work._factors
    monkeypatch.setattr(host_work, "_factors", lambda *given: 1.05 * right(*given))
    lines = {line.name: line for line in check_operations(subject)}
    for operation in OPERATIONS:
        line = lines[f"steering: {operation}"]
        assert line.outcome == Outcome.DIFFERS
        assert line.figures["share"] == pytest.approx(1.05, abs=0.01)
