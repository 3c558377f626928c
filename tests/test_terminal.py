from __future__ import annotations

import pytest

from morfi.terminal import TerminalProgress


def test_everything_goes_to_standard_error_and_a_phase_never_lands_on_the_bar(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with TerminalProgress() as progress:
        progress.phase("getting ready")
        progress.start(10, 4, "answers")
        progress.advance(6)
        progress.phase("stopped")
    said = capsys.readouterr()
    assert said.out == ""
    first, *_ = said.err.splitlines()
    assert first.startswith("[")
    assert first.endswith("s] getting ready")
    assert "4/10" in said.err
    assert "10/10" in said.err
    # The bar rewrites its line after a carriage return; what stands before the phase must be blank.
    (line,) = (line for line in said.err.split("\n") if "stopped" in line)
    assert line.rpartition("\r")[2].lstrip().startswith("[")
    assert line.rpartition("\r")[2].endswith("s] stopped")


def test_progress_without_a_bar_closes() -> None:
    with pytest.raises(KeyboardInterrupt), TerminalProgress():
        raise KeyboardInterrupt


def test_each_kind_of_work_has_a_bar_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with TerminalProgress() as progress:
        progress.start(10, 0, "texts")
        progress.advance(10)
        progress.phase("training")
        progress.start(2000, 0, "tokens")
        progress.advance(500)
    texts, phase, tokens = (line.rpartition("\r")[2] for line in capsys.readouterr().err.strip().split("\n"))
    assert "10/10" in texts
    assert "texts" in texts
    assert phase.endswith("s] training")
    assert "500/2000" in tokens
    assert "tokens" in tokens
