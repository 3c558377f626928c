"""The bases and adapters of all tests of this folder, made once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from trained_families import FORMS, Trained, start_as_on_a_gpu

from morfi.checkpoints import resolve
from morfi.serve.engine import Engine


@pytest.fixture(scope="package")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    make_base: Callable[[Path, str], Path],
    train: Callable[..., Path],
    starts_vllm: None,
) -> Iterator[Callable[[str], Trained]]:
    """Gives a family's base and adapters, with a cache of their own that worker processes see as well."""
    root = tmp_path_factory.mktemp("swap")

    @functools.cache
    def get(family: str) -> Trained:
        base = make_base(root / family, family)
        adapters = [
            train(root / f"{family}, {form.name}", base, seed=number, **form.settings)
            for number, form in enumerate(FORMS[family])
        ]
        return Trained(resolve(str(base), dtype="float32"), tuple(adapters))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORFI_CACHE", str(root / "cache"))
        yield get


@pytest.fixture(scope="package")
def elsewhere(trained: Callable[[str], Trained]) -> Iterator[Engine]:
    """One engine on the untied Llama that runs as on a GPU."""
    with start_as_on_a_gpu(trained("llama").base) as engine:
        yield engine


@pytest.fixture(scope="module", params=["live", pytest.param("elsewhere", marks=pytest.mark.slow)])
def either(request: pytest.FixtureRequest) -> Engine:
    """The file's own live engine, and that of `elsewhere`."""
    found: Engine = request.getfixturevalue(request.param)
    return found
