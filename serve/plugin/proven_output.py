"""The output of a step that leaves its worker only where the step is known to have done its work."""

from __future__ import annotations

from typing import Any

from vllm.v1.outputs import AsyncModelRunnerOutput

from morfi.serve.plugin.steps import Steps


class ProvenOutput(AsyncModelRunnerOutput):  # type: ignore[misc]
    """vLLM's output that is on its way from the GPU, and the step that it is of."""

    def __init__(self, output: AsyncModelRunnerOutput, steps: Steps, number: int) -> None:
        self._output = output
        self._steps = steps
        self._number = number

    def get_output(self) -> Any:
        """The step's output; raises MorfiError where a layer did not do its work, in it or before."""
        found = self._output.get_output()  # waits for tokens, which come after what the layers wrote
        self._steps.prove(self._number)
        return found
