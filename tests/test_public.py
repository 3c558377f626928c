"""The names that programs import from `morfi`: which, at what cost, and each shown in use."""

from __future__ import annotations

import ast
import doctest
import subprocess
import sys

import pytest

import morfi

PUBLIC = {
    "Capture",
    "Checkpoint",
    "Completion",
    "Direction",
    "Engine",
    "InputError",
    "Latent",
    "MorfiError",
    "SaeLatents",
    "Sampling",
    "Steering",
    "Store",
    "find_trends",
    "load_sae",
    "load_tokenizer",
    "resolve",
    "start_engine",
}
RUN = ("Capture", "Latent", "Sampling", "Steering")  # their examples need nothing else
RESULTS = ("Checkpoint", "Completion")  # made by others


def test_the_public_names_are_these() -> None:
    assert set(morfi.__all__) == PUBLIC
    assert set(dir(morfi)) >= PUBLIC
    assert all(getattr(morfi, name).__name__ == name for name in PUBLIC)
    with pytest.raises(AttributeError, match="no attribute 'start_engin'"):
        _ = morfi.start_engin


def test_importing_morfi_loads_nothing_of_it() -> None:
    program = "import sys, morfi; print([name for name in sys.modules if name.startswith('morfi.')])"
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_public_name_is_shown_in_use(name: str) -> None:
    examples = doctest.DocTestParser().get_examples(getattr(morfi, name).__doc__)
    assert examples
    used = {
        node.id for one in examples for node in ast.walk(ast.parse(one.source)) if isinstance(node, ast.Name)
    }
    assert name in used or name in RESULTS


@pytest.mark.parametrize("name", RUN)
def test_an_example_gives_what_it_says(name: str) -> None:
    names = {each: getattr(morfi, each) for each in RUN}
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(morfi, name), name, globs=names)
    result = doctest.DocTestRunner().run(test)
    assert (result.failed, result.attempted) == (0, 1)
