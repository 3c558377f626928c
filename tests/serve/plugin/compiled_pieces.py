"""The child of test_compiled_pieces.py: how many different graphs an engine's model is compiled to.

vLLM compiles a model for a GPU in pieces, between one attention and the next; here they go to a backend that
runs them as they are.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch


def text_of(graph: torch.fx.GraphModule) -> str:
    """The graph's operations and what they read, by number: the same for graphs that do the same."""
    numbers = {node: number for number, node in enumerate(graph.graph.nodes)}

    def line(node: torch.fx.Node) -> str:
        read = torch.fx.map_arg((node.args, node.kwargs), lambda one: f"%{numbers[one]}")
        what = "" if node.op in ("placeholder", "output") else node.target
        return f"{node.op} {what} {'' if node.op == 'placeholder' else read}"

    return "\n".join(map(line, numbers))


def main() -> None:
    """Starts an engine on the model of the first argument; prints all pieces and the different ones."""
    from morfi.engine.protocol import Sampling
    from morfi.serve.engine import Engine
    from morfi.serve.settings import prepare_process

    prepare_process(gpu=False, verbose=False)
    from vllm.compilation.piecewise_backend import PiecewiseBackend
    from vllm.config import CompilationMode
    from vllm.platforms import current_platform

    found: Counter[str] = Counter()
    build, platform = PiecewiseBackend.__init__, type(current_platform)
    update = platform.check_and_update_config.__func__

    def count(self: Any, graph: torch.fx.GraphModule, *args: Any, **kwargs: Any) -> None:
        found[text_of(graph)] += 1
        build(self, graph, *args, **kwargs)

    def as_on_a_gpu(cls: Any, config: Any) -> None:
        update(cls, config)
        config.compilation_config.mode = CompilationMode.VLLM_COMPILE
        config.compilation_config.backend = "eager"

    PiecewiseBackend.__init__ = count
    PiecewiseBackend.__call__ = lambda self, *args: self.graph(*args)
    platform.check_and_update_config = classmethod(as_on_a_gpu)
    with Engine(Path(sys.argv[1]), dtype="float32", context=64, overrides={"enforce_eager": False}) as engine:
        engine.generate([[3, 4, 5]], Sampling(max_tokens=2))
    holding = sum(n for text, n in found.items() if "morfi" in text)
    numbers = {"pieces": found.total(), "different": len(found), "holding the operation": holding}
    json.dump(numbers, sys.stdout)


if __name__ == "__main__":
    main()
