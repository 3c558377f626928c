"""Requests that stop at the end of the line: the engine core ends them a step sooner, the text says how.

vLLM looks for stop strings in the text, in the process of the server, so a request computes one token more
than it gives. Where "\\n" is among the stop strings, the engine core itself ends a request at a token whose
text begins with a newline. What the answer then holds, and which stop string it names, is still decided by
vLLM's own search in the text.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from vllm.v1.engine import FinishReason

from morfi.checkpoints.vocabulary import line_ends

NEWLINE = "\n"


class LineEnds:
    """The requests that end with the line, by the id that the server gave them, with the tokens added."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokens = line_ends(tokenizer)
        self._added: dict[str, frozenset[int]] = {}

    def add(self, params: Any) -> frozenset[int]:
        """Adds to the stop tokens of a request's `params` those that end the line; returns those added."""
        if not ends_with_line(params):
            return frozenset()
        own = params.stop_token_ids or ()
        added = self._tokens.difference(own)
        params.stop_token_ids = [*own, *added]
        return added

    def leave_to_text(self, outputs: Sequence[Any], states: Mapping[str, Any]) -> None:
        """Makes vLLM decode those of the engine core's outputs that ended at an added token to their end.

        Its search for stop strings then decides as if nothing had ended.
        """
        for output in outputs:
            if output.finish_reason != FinishReason.STOP or not isinstance(output.stop_reason, int):
                continue
            state = states.get(output.request_id)
            if state is not None and output.stop_reason in self._added.get(state.external_req_id, ()):
                output.finish_reason, output.stop_reason = FinishReason.LENGTH, None

    async def ended(
        self, outputs: AsyncGenerator[Any, None], request_id: str, added: frozenset[int]
    ) -> AsyncGenerator[Any, None]:
        """vLLM's outputs of a request with added tokens; where the text lost the newline it ends as well."""
        self._added[request_id] = added
        try:
            async for output in outputs:
                for part in output.outputs:
                    if part.finish_reason == "length" and part.token_ids and part.token_ids[-1] in added:
                        part.finish_reason, part.stop_reason = "stop", NEWLINE
                yield output
        finally:
            del self._added[request_id]
            await outputs.aclose()


def ends_with_line(params: Any) -> bool:
    """Whether a request ends where the engine core would end it at a token that begins with a newline."""
    # Tokens to stop at are never chosen before `min_tokens`; a text to stop at may be.
    return NEWLINE in (params.stop or ()) and not params.min_tokens
