"""Every check and benchmark that needs a GPU, and one table of how they ended: `make gpu`.

What each prints is kept in build/gpu/. Exits with 1 where one fails, or where there is no GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from morfi.device import device_name, is_gpu

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build" / "gpu"
PYTHON = sys.executable
STEPS: Mapping[str, Sequence[str]] = {
    "morfi verify": (str(Path(PYTHON).with_name("morfi")), "verify", "--ckpt", "smollm2"),
    "tests/kernels": (PYTHON, "-m", "pytest", "-q", "tests/kernels"),
    "bench/trends_gpu.py": (PYTHON, "bench/trends_gpu.py"),
    "bench/steering_host.py": (PYTHON, "bench/steering_host.py"),
    "bench/swap.py": (PYTHON, "bench/swap.py"),
    "bench/swap_in_place.py": (PYTHON, "bench/swap_in_place.py"),
}


@dataclass(frozen=True, slots=True)
class Ended:
    """How a step ended."""

    name: str
    exit_code: int
    seconds: float
    last_line: str  # of what it printed
    log: Path


def run_steps(steps: Mapping[str, Sequence[str]], logs: Path) -> Iterable[Ended]:
    """Runs them in the repository's root, each whatever became of those before."""
    logs.mkdir(parents=True, exist_ok=True)
    for name, command in steps.items():
        log = logs / f"{name.replace('/', '-').replace(' ', '-')}.log"
        print(f"{name} ...", file=sys.stderr)
        began = time.monotonic()
        with log.open("w") as written:
            done = subprocess.run(
                command,
                cwd=ROOT,
                stdout=written,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONSAFEPATH": "1"},
                check=False,
            )
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        yield Ended(name, done.returncode, time.monotonic() - began, lines[-1] if lines else "", log)


def table(ended: Iterable[Ended]) -> str:
    """A line for each; of what failed, where its log is."""
    lines = ["| | ended | seconds | its last line |", "|---|---|---|---|"]
    for one in ended:
        how = "passed" if one.exit_code == 0 else f"failed: {one.log}"
        lines.append(f"| {one.name} | {how} | {one.seconds:.0f} | {one.last_line.replace('|', '/')[:100]} |")
    return "\n".join(lines)


def main() -> None:
    """Runs all, prints the table, and exits with 1 where one failed."""
    if not is_gpu():
        raise SystemExit("no GPU here: torch sees no CUDA device")
    ended = list(run_steps(STEPS, LOGS))
    print(f"{device_name()}\n\n{table(ended)}")
    if any(one.exit_code for one in ended):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
