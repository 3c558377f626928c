"""Kernels compiled for a GPU that is not there, with the types, constants and hints of a real launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def compiled(launch: Callable[[], None], capability: int) -> Any:
    """What Triton compiles for sm_`capability` when `launch` starts a kernel on tensors of a CPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import ASTSource, make_backend
    from triton.runtime.jit import JITFunction, create_function_from_signature

    launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        launches.append((self, args, {key: kwargs[key] for key in kwargs.keys() - {"grid", "warmup"}}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", run)
        launch()
    ((kernel, args, options),) = launches
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    bound, specialization, rest = create_function_from_signature(kernel.signature, kernel.params, backend)(
        *args, **options
    )
    settings, signature, constants, attributes = kernel._pack_args(
        backend, options, bound, specialization, rest
    )
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=target, options=settings.__dict__)
