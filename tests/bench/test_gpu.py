"""`make gpu` runs every step whatever became of those before, and says in one line where there is no GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("bench_gpu", ROOT / "bench" / "gpu.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_gpu"] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_it_says_so_and_exits_with_1(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "is_gpu", lambda: False)
    with pytest.raises(SystemExit, match="no GPU here: torch sees no CUDA device"):
        gpu.main()
    assert capsys.readouterr() == ("", "")


def test_every_step_stands_in_the_table(gpu: ModuleType, tmp_path: Path) -> None:
    steps = {
        "a/bad one": ("sh", "-c", "echo wrong; exit 3"),
        "good": ("sh", "-c", "echo one; echo 'two | three'; pwd >&2"),
    }
    ended = list(gpu.run_steps(steps, tmp_path / "logs"))
    assert [(one.name, one.exit_code, one.last_line) for one in ended] == [
        ("a/bad one", 3, "wrong"),
        ("good", 0, str(ROOT)),
    ]
    bad, good = gpu.table(ended).splitlines()[2:]
    assert bad == f"| a/bad one | failed: {tmp_path}/logs/a-bad-one.log | 0 | wrong |"
    assert good.startswith("| good | passed | 0 | ")


def test_every_step_is_there(gpu: ModuleType) -> None:
    for name, command in gpu.STEPS.items():
        path = ROOT / name
        assert path.exists() or name == "morfi verify", name
        assert Path(command[0]).exists(), name
