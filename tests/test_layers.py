"""Imports: who may import whom, read from one table, lazy and type-only imports included."""

from __future__ import annotations

import ast
import functools
import tomllib
from collections.abc import Container, Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {
    "duckdb": ("store",),
    "vllm": ("serve", "serve.plugin", "serve.weights", "serve.http"),
    "click": ("cli", "command"),
    "ray": ("fleet",),
}
# Each room, and those that it may import from besides its own.
SMALL = ("words", "errors", "terminal", "files", "cache", "device", "statistics")
RECORDS = (*SMALL, "engine", "checkpoints", "questions")
STORED = (*RECORDS, "store", "runs", "morfi")
MAY: Mapping[str, tuple[str, ...]] = {
    "morfi": (),
    "words": (),
    "errors": ("words",),
    "terminal": ("errors",),
    "files": ("errors",),
    "cache": ("errors", "terminal", "files"),
    "device": ("errors",),
    "statistics": ("errors",),
    "kernels": ("errors", "engine"),
    "checkpoints": SMALL,
    "engine": (*SMALL, "checkpoints"),
    "fleet": (*SMALL, "engine", "checkpoints"),
    "endpoint": (*SMALL, "engine", "checkpoints"),
    "questions": (*SMALL, "checkpoints"),
    "store": (*SMALL, "questions"),
    "runs": (*RECORDS, "store", "morfi"),
    "training": STORED,
    "conditions": (*STORED, "training"),
    "evaluation": (*STORED, "training", "conditions", "endpoint"),
    "latents": (*STORED, "training", "conditions", "kernels"),
    "interventions": (*STORED, "training", "conditions", "evaluation", "endpoint", "latents"),
    "experiment": (*STORED, "training", "conditions", "evaluation", "latents", "interventions"),
    "planning": (
        *STORED,
        "training",
        "conditions",
        "evaluation",
        "latents",
        "interventions",
        "experiment",
    ),
    "verification": (*RECORDS, "runs"),
    "report": (
        *STORED,
        "training",
        "conditions",
        "evaluation",
        "latents",
        "interventions",
        "experiment",
        "planning",
        "verification",
    ),
    "command": (*STORED, "training", "experiment", "report", "serve", "fleet"),
    "serve": (*RECORDS, "serve.plugin", "serve.weights"),
    "serve.plugin": ("errors", "engine", "kernels"),
    "serve.weights": (*SMALL, "engine", "checkpoints"),
    "serve.http": (
        *STORED,
        "training",
        "conditions",
        "latents",
        "kernels",
        "serve",
        "serve.plugin",
        "serve.weights",
    ),
}


def modules(root: Path) -> dict[str, Path]:
    """Every module of the source by its name; `cli` and `__main__` are at the top of everything."""
    found = {"morfi.cli": root / "cli.py"}
    for folder in ("morfi", "serve", "kernels"):
        for path in sorted((root / folder).rglob("*.py")):
            if not any(
                (root / folder / part).is_symlink() for part in path.relative_to(root / folder).parts[:1]
            ):
                parts = [
                    *(("morfi",) if folder != "morfi" else ()),
                    *path.relative_to(root).with_suffix("").parts,
                ]
                found[".".join(parts).removesuffix(".__init__")] = path
    del found["morfi.__main__"]
    return found


def room(module: str) -> str:
    """The folder that a module stands in, or its own name where that is morfi/ itself."""
    parts = module.split(".")[1:]
    inner = ".".join(parts[:2])
    if parts[:1] == ["serve"] and (len(parts) > 2 or inner in MAY):
        return inner
    return parts[0] if parts else "morfi"


def imported(tree: ast.AST, known: Container[str]) -> Iterator[str]:
    """The modules that a file names in its imports, wherever they stand; what is no module, as written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = f"{'.' * node.level}{node.module or ''}"
            for name in node.names:
                whole = f"{start}.{name.name}"
                yield whole if whole in known or (start == "morfi" and name.name != "__version__") else start
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value)


def faults_of(module: str, names: Iterable[str], known: Container[str]) -> Iterator[str]:
    """What is wrong with the imports of one module."""
    own = room(module)
    if own not in MAY and own != "cli":
        yield f"{module} stands in {own}, which has no line in the table"
        return
    for name in sorted(names):
        package = name.split(".")[0]
        if package == "":
            yield f"{module} imports {name}: imports name the whole module"
        elif package in ("serve", "kernels", "cli"):
            yield f"{module} imports {name}: it is morfi.{name}"
        elif package == "morfi" and name not in known and name != "morfi.__version__":
            yield f"{module} imports {name}: import it from where it stands"
        elif name in known and own != "cli" and room(name) not in (own, *MAY[own]):
            yield f"{module} imports {name}: {own} may not import {room(name)}"
        if package in HEAVY and own not in HEAVY[package]:
            yield f"{module} imports {package}"


def faults(root: Path) -> list[str]:
    """Every import that the table does not allow, and a cycle if there is one."""
    known = modules(root)
    found, graph = list[str](), dict[str, set[str]]()
    for module, path in known.items():
        names = set(imported(_parsed(path.read_bytes()), known)) - {module}
        graph[module] = {name for name in names if name in known}
        if module == "morfi":  # its public face names everything, and loads it late
            graph[module] = set()
            continue
        found += faults_of(module, names, known)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"a cycle: {' <- '.join(error.args[1])}")
    return found


@functools.cache
def _parsed(source: bytes) -> ast.AST:
    return ast.parse(source)


def test_every_import_is_allowed_and_none_leads_back() -> None:
    assert not faults(ROOT)


@pytest.mark.long
@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        (
            "morfi/errors.py",
            "import morfi.files",
            "morfi.errors imports morfi.files: errors may not import files",
        ),
        ("kernels/sums.py", "def f():\n    from morfi.store import Store", "kernels may not import store"),
        ("serve/plugin/joint.py", "from morfi.serve import engine", "serve.plugin may not import serve"),
        ("morfi/report/tables.py", "import duckdb", "morfi.report.tables imports duckdb"),
        ("morfi/questions/matching.py", "from ..store import Store", "imports name the whole module"),
        ("morfi/questions/matching.py", "from . import prompts", "imports name the whole module"),
        ("morfi/questions/matching.py", "importlib.import_module('morfi.store')", "may not import store"),
        ("morfi/questions/matching.py", "__import__('duckdb')", "morfi.questions.matching imports duckdb"),
        ("morfi/runs/life.py", "from morfi import start_engine", "import it from where it stands"),
        ("morfi/runs/life.py", "from morfi import *", "import it from where it stands"),
        ("morfi/runs/life.py", "import morfi.__main__", "import it from where it stands"),
        ("morfi/runs/life.py", "from serve import engine", "it is morfi.serve"),
        ("morfi/runs/life.py", "import cli", "it is morfi.cli"),
        ("serve/newroom/a.py", "import vllm", "stands in serve.newroom, which has no line in the table"),
        ("morfi/store/rows.py", "if TYPE_CHECKING:\n    from morfi.store.store import Store", "a cycle"),
    ],
)
def test_a_broken_rule_is_found(file: str, line: str, said: str, tmp_path: Path) -> None:
    for path in modules(ROOT).values():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "morfi" / "__main__.py").touch()
    broken = tmp_path / file
    broken.parent.mkdir(exist_ok=True)
    with broken.open("a", encoding="utf-8") as opened:
        opened.write(f"\n{line}\n")
    assert any(said in fault for fault in faults(tmp_path))


def test_every_folder_of_the_source_is_a_package_that_is_built() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {name for name, path in modules(ROOT).items() if path.name == "__init__.py"}
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(folders)
