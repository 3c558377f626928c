"""Transformers' own model classes, which vLLM changes for its use, made to work outside of vLLM as well.

For an architecture that vLLM has no model of, it builds that of transformers, whose class it makes ask for
vLLM's configuration. Nothing else in the process could then build that model: not what asks the class which
tensors a checkpoint must have, nor a second engine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def share(cls: type, plain: Callable[..., None]) -> None:
    """Lets `cls`, whose `__init__` was `plain` before vLLM changed it, be built outside of vLLM as before."""
    from vllm.config import get_current_vllm_config_or_none

    changed: Callable[..., None] = cls.__init__  # type: ignore[misc]

    @functools.wraps(plain)
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        if get_current_vllm_config_or_none() is not None:
            changed(self, *args, **kwargs)
        else:
            plain(self, *args, **kwargs)

    cls.__init__ = build  # type: ignore[misc]
    cls.do_not_compile = True  # type: ignore[attr-defined] # where vLLM's `__call__` finds none of the model's own
