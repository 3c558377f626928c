"""Imports: who may import whom, read from one table, lazy and type-only imports included."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {
    "duckdb": ("store",),
    "vllm": ("serve", "serve.plugin", "serve.weights", "serve.http"),
    "click": ("cli", "command"),
}
# Each room, and those that it may import from besides its own.
SMALL = ("errors", "terminal", "files", "cache", "device", "statistics")
RECORDS = (*SMALL, "engine", "checkpoints", "questions")
STORED = (*RECORDS, "store", "runs", "morfi")
MAY: Mapping[str, tuple[str, ...]] = {
    "morfi": (),
    "errors": (),
    "terminal": ("errors",),
    "files": ("errors",),
    "cache": ("errors", "terminal", "files"),
    "device": ("errors",),
    "statistics": ("errors",),
    "kernels": ("errors", "engine"),
    "checkpoints": SMALL,
    "engine": (*SMALL, "checkpoints"),
    "endpoint": (*SMALL, "engine", "checkpoints"),
    "questions": (*SMALL, "checkpoints"),
    "store": (*SMALL, "questions"),
    "runs": (*RECORDS, "store", "morfi"),
    "training": STORED,
    "conditions": (*STORED, "training"),
    "evaluation": (*STORED, "training", "conditions", "endpoint"),
    "latents": (*STORED, "training", "conditions", "kernels"),
    "interventions": (*STORED, "training", "conditions", "latents"),
    "report": (*STORED, "training", "conditions", "evaluation", "latents", "interventions"),
    "command": (*STORED, "training", "report", "serve"),
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
    if parts[:1] == ["serve"]:
        return ".".join(parts[:2]) if parts[1:2] and parts[1] in ("plugin", "weights", "http") else "serve"
    return parts[0] if parts else "morfi"


def imported(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules that a file names in its imports, wherever they stand in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                yield whole if whole in known else node.module


def faults(root: Path) -> list[str]:
    """Every import that the table does not allow, and a cycle if there is one."""
    known = modules(root)
    found, graph = [], dict[str, set[str]]()
    for module, path in known.items():
        names = set(imported(path, known)) - {module}
        graph[module] = {name for name in names if name in known}
        if module == "morfi":  # its public face names everything, and loads it late
            graph[module] = set()
            continue
        for name in sorted(names):
            own, other = room(module), room(name)
            heavy = name.split(".")[0]
            if name in known and module != "morfi.cli" and other not in (own, *MAY[own]):
                found.append(f"{module} imports {name}: {own} may not import {other}")
            if heavy in HEAVY and own not in HEAVY[heavy]:
                found.append(f"{module} imports {heavy}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"a cycle: {' <- '.join(error.args[1])}")
    return found


def test_every_import_is_allowed_and_none_leads_back() -> None:
    assert not faults(ROOT)


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
    broken.write_text(f"{broken.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    assert any(said in fault for fault in faults(tmp_path))


def test_every_folder_of_the_source_is_a_package_that_is_built() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {name for name, path in modules(ROOT).items() if path.name == "__init__.py"}
    assert sorted(project["tool"]["setuptools"]["packages"]) == sorted(folders)
