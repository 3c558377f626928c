"""Steering and capture for those who call vLLM itself: what they pass, and what they get back.

They pass a specification in `SamplingParams.extra_args["morfi"]`, or to vLLM's own server as JSON text in
`vllm_xargs`. What was done and captured comes back as `morfi` of each `CompletionOutput`, a `Done`, and of
the `RequestOutput`, a tuple of these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from morfi.engine.steering import Applied, Capture, Captured, Steering, from_json
from morfi.errors import InputError, MorfiError, nearest
from morfi.serve.plugin.reports import Report, applied, captured, detach
from morfi.serve.plugin.requested import IN_CORE

KEY = "morfi"
_OTHER_NAMES = ("steering", "capture", "steer")
_ASKED, _REPORTS = "morfi_asked", "morfi_reports"


@dataclass(frozen=True, slots=True)
class Done:
    """The changes made to a request of vLLM's own interface, as in a `morfi.engine.protocol.Completion`."""

    applied: tuple[Applied, ...]
    captured: tuple[Captured, ...]


def asks(extra_args: Mapping[str, Any] | None) -> bool:
    """Whether a request has a specification; raises InputError for a key that looks like its own."""
    for key in extra_args or ():
        known = key.lower() in (KEY, *_OTHER_NAMES) or nearest(key.lower(), (KEY,))
        if known and key != KEY:
            raise InputError(f'extra_args has no "{key}"; steering and capture are given under "{KEY}"')
    return KEY in (extra_args or {})


def parsed(specification: object) -> dict[str, Any]:
    """A specification as an object, where it may be JSON text; raises InputError for anything else."""
    if isinstance(specification, str):
        try:
            specification = json.loads(specification)
        except (ValueError, RecursionError) as error:
            raise InputError(f"a steering specification that is text is JSON: {error}") from error
        if isinstance(specification, dict) and specification.get("capture") is not None:
            raise InputError(
                "what is captured cannot be given back over HTTP; capture from Python, with vLLM's LLM or "
                "with morfi"
            )
        if isinstance(specification, dict):
            # What morfi's own engine adds to a specification is not for clients to give: refused as unknown.
            from_json({key: value for key, value in specification.items() if key != "steering"})
    if not isinstance(specification, dict):
        raise InputError(f"a steering specification is an object, got {type(specification).__name__}")
    return specification


def comes_with_end(params: Any, capture: Capture | None) -> bool:
    """Whether the reports of a request come with its last output: not where the end is found in the text.

    Raises InputError for a capture that could not be handed back.
    """
    from vllm.sampling_params import RequestOutputKind

    in_core = not params.stop
    if capture is not None and not in_core:
        raise InputError(
            "a capture comes back with the engine's last output, but an end at `stop` is found after it; "
            "give `stop_token_ids` in place of `stop`"
        )
    if capture is not None and params.output_kind == RequestOutputKind.DELTA:
        raise InputError("a capture comes back with a whole answer; give another `output_kind` than DELTA")
    return in_core


def note(state: Any, extra_args: Mapping[str, Any] | None) -> None:
    """Keeps with vLLM's `RequestState` what a request that is ready asked for."""
    ready = (extra_args or {}).get(KEY)
    if ready and ready.get("report") == IN_CORE:
        asked = {key: ready[key] for key in ("steering", "capture") if ready.get(key) is not None}
        setattr(state, _ASKED, from_json(asked))


def take(states: Mapping[str, Any], outputs: Sequence[Any]) -> None:
    """Takes the reports out of the engine core's outputs, to the states of their requests."""
    for output in outputs:
        reports = detach(output)
        if reports is not None and output.request_id in states:
            setattr(states[output.request_id], _REPORTS, reports)


def hand_out(state: Any, output: Any) -> None:
    """Gives a `CompletionOutput` that has ended its `morfi`; one not steered as asked becomes an error."""
    if not hasattr(state, _ASKED) or output.finish_reason in ("error", "abort"):
        return
    steering, capture = getattr(state, _ASKED)
    reports: Sequence[Report | None] = getattr(state, _REPORTS, ())  # without any, nothing is known
    n_output = state.detokenizer.num_output_tokens()
    try:
        output.morfi = _done(steering, capture, reports, state.prompt_len, n_output)
    except MorfiError as error:
        output.finish_reason, output.stop_reason = "error", str(error)


def hand_out_all(state: Any, output: Any) -> None:
    """Gives a `RequestOutput` that has ended `morfi`: that of each of its outputs, None for one without."""
    if hasattr(state, _ASKED):
        output.morfi = tuple(getattr(one, KEY, None) for one in output.outputs)


def _done(
    steering: Sequence[Steering],
    capture: Capture | None,
    reports: Sequence[Report | None],
    n_prompt: int,
    n_output: int,
) -> Done:
    parts = [part for report in reports if report for part in report["captured"].values()]
    d_model = next((len(data) // 4 // len(places) for places, _, data in parts if places), 1)
    return Done(
        applied(steering, reports, n_prompt, n_output),
        captured(capture, reports, n_prompt, n_output, d_model),
    )
