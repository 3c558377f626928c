"""Sizes: how long a module and a function may be, in the source, the tests and the benchmarks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("morfi", "serve", "kernels", "tests", "bench", "docs")
MODULE, COMMANDS, FUNCTION = 450, 600, 70  # lines; COMMANDS: of cli.py, which holds all of them


def too_long(root: Path) -> Iterator[str]:
    """Every module and function that is longer than it may be."""
    within = {path.resolve() for folder in FOLDERS for path in (root / folder).rglob("*.py")}
    for path in sorted(within | {(root / "cli.py").resolve()}):
        name, text = path.relative_to(root.resolve()).as_posix(), path.read_text(encoding="utf-8")
        n_lines, most = len(text.splitlines()), COMMANDS if name == "cli.py" else MODULE
        if n_lines > most:
            yield f"{name} has {n_lines} lines; at most {most}"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                n_lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if n_lines > FUNCTION:
                    yield f"{name}: {node.name} has {n_lines} lines; at most {FUNCTION}"


def test_modules_and_functions_are_short() -> None:
    assert not list(too_long(ROOT))


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("tests/serve/test_page.py", "\n" * 451, ["tests/serve/test_page.py has 451 lines; at most 450"]),
        ("bench/swap.py", "\n" * 450, []),
        ("cli.py", "\n" * 600, []),
        ("cli.py", "\n" * 601, ["cli.py has 601 lines; at most 600"]),
        ("serve/a.py", "def f():\n" + "    x = 1\n" * 69, []),
        (
            "serve/a.py",
            "class A:\n    async def f():\n" + "        x = 1\n" * 70,
            ["serve/a.py: f has 71 lines; at most 70"],
        ),
    ],
)
def test_a_file_over_its_size_is_found(file: str, text: str, said: list[str], tmp_path: Path) -> None:
    (tmp_path / "cli.py").touch()
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert list(too_long(tmp_path)) == said
