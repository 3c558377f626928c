"""Workers' reports on a steered or captured request, and what a caller gets of them."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from morfi.engine.shards import ShardWriter
from morfi.engine.steering import Applied, Capture, Captured, Steering, n_positions, spans, within
from morfi.errors import MorfiError
from morfi.kernels.residual import UNFIT
from morfi.serve.plugin.requested import IN_CORE, WITH_END
from morfi.serve.plugin.step import ResidualState
from morfi.serve.plugin.work import Live

Report = dict[str, Any]  # plain, so that it goes to another process
_REPORTS = "morfi_reports"


class Reporting:
    """The calls that hand out what was captured; `offer` gives them to every worker of vLLM."""

    model_runner: Any
    rank: int

    @staticmethod
    def offer(worker: type) -> None:
        """Makes the calls methods of vLLM's class of workers."""
        for name, call in vars(Reporting).items():
            if name.startswith("morfi_"):
                setattr(worker, name, call)

    def morfi_unsteerable(self) -> str | None:
        """Why this worker's model can be neither steered nor captured; None where it can."""
        refusal: str | None = self.model_runner.morfi_refusal
        return refusal

    def morfi_refuse(self, refusal: str) -> None:
        """From now on `morfi_unsteerable` says this."""
        self.model_runner.morfi_refusal = refusal

    def morfi_open_shards(self, folder: str, shard_bytes: int) -> None:
        """From now on requests that have a number in shards are captured to files in `folder`."""
        state: ResidualState | None = self.model_runner.morfi_state
        if state is not None and state.keeps:
            state.shards = ShardWriter(Path(folder), f"rank-{self.rank}", shard_bytes)

    def morfi_close_shards(self) -> str | None:
        """Writes what is left and ends with it; says what went wrong with the files, None for nothing."""
        state: ResidualState | None = self.model_runner.morfi_state
        return None if state is None else state.close_shards()

    def morfi_slots(self) -> dict[str, int]:
        """How many rows the table of directions has and how many hold one; requests whose state is kept."""
        state: ResidualState | None = self.model_runner.morfi_state
        if state is None:
            return {"n": 0, "used": 0, "followed": 0}
        followed = len(state.live) + len(state.ended)
        return {"n": state.bank.n_slots, "used": state.bank.n_used, "followed": followed}

    def morfi_forget(self, name: str) -> None:
        """Empties the row of a direction in the table of directions."""
        state: ResidualState | None = self.model_runner.morfi_state
        if state is not None:
            state.bank.forget(name)

    def morfi_take_reports(
        self, request_ids: list[str], n_computed: list[int] | None = None
    ) -> list[Report | None]:
        """The report of each request, by vLLM's internal id; None where this worker has none (any more).

        Each says whether all was done up to position `n_computed`, by default to the last one: then a step
        that was begun before the end was known is waited for.
        """
        state: ResidualState | None = self.model_runner.morfi_state
        if state is None:
            return [None] * len(request_ids)
        ends: Sequence[int | None] = n_computed or [None] * len(request_ids)
        return [
            None if live is None else _report(live, state, end)
            for live, end in zip(state.take(request_ids), ends, strict=True)
        ]


def attach(executor: Any, requests: Mapping[str, Any], outputs: Mapping[int, Any]) -> None:
    """Adds the workers' reports to the last outputs of the requests that want them so.

    In the engine core: `requests` are its scheduler's, by id, and `outputs` what a step made for each client.
    """
    ended = [
        output
        for of_client in outputs.values()
        for output in of_client.outputs
        if output.finish_reason is not None and _wants(requests.get(output.request_id))
    ]
    if not ended:
        return
    ids = [output.request_id for output in ended]
    # The last token was not put into the model, or is in a step that nobody needs.
    n_computed = [requests[request_id].num_tokens - 1 for request_id in ids]
    workers = executor.collective_rpc("morfi_take_reports", args=(ids, n_computed))
    for output, reports in zip(ended, zip(*workers, strict=True), strict=True):
        output.kv_transfer_params = {**(output.kv_transfer_params or {}), _REPORTS: list(reports)}


def detach(output: Any) -> list[Report | None] | None:
    """Takes out of an output what `attach` added, each worker's report; None for an output without."""
    found = output.kv_transfer_params
    if not found or _REPORTS not in found:
        return None
    reports: list[Report | None] = found[_REPORTS]
    output.kv_transfer_params = {key: value for key, value in found.items() if key != _REPORTS} or None
    return reports


def _wants(request: Any) -> bool:
    params = None if request is None else request.sampling_params
    extra = (params.extra_args if params is not None else None) or {}
    return bool(extra.get("morfi", {}).get("report") in (WITH_END, IN_CORE))


def _report(live: Live, state: ResidualState, n_computed: int | None) -> Report:
    unproven = state.unproven(live, n_computed)
    standing = state.standing(live)
    captured = {}
    for layer, parts in live.captured.items():
        positions = [position for part in parts for position in part.positions]
        token_ids = [token_id for part in parts for token_id in part.token_ids]
        values = torch.cat([part.values for part in parts])
        captured[str(layer)] = (positions, token_ids, values.cpu().numpy().tobytes())
    return {
        "layers": [state.layers.start, state.layers.stop],
        "reached": standing.reached,
        "unproven": unproven,
        "first": standing.first,
        "changed": standing.changed,
        "failure": None if state.shards is None else state.shards.failure,
        "n_captured": {str(layer): n for layer, n in live.n_captured.items()},
        "captured": captured,
    }


def applied(
    steering: Sequence[Steering], reports: Sequence[Report | None], n_prompt: int, n_output: int
) -> tuple[Applied, ...]:
    """The steering that all workers report; raises MorfiError unless all of `steering` was applied."""
    n_computed = n_prompt + n_output - 1  # the last token is never put into the model
    found = []
    for number, one in enumerate(steering):
        report = _reaching(reports, one.layer, n_computed)
        if reason := unfit(report, n_computed):
            raise MorfiError(reason)
        n_tokens = int((_changed(report, n_computed) >> number & 1).sum())
        if one.always_changes:  # only such requests have positions from the prefix cache
            n_tokens += n_positions(one.positions, n_prompt, min(report["first"], n_computed))
        found.append(Applied(one, n_tokens))
    return tuple(found)


def n_changed(
    steering: Sequence[Steering], reports: Sequence[Report | None], n_prompt: int, n_output: int
) -> int:
    """At how many positions any of `steering` changed it, after any layer; raises as `applied`."""
    applied(steering, reports, n_prompt, n_output)
    n_computed = n_prompt + n_output - 1
    changed = np.zeros(n_computed, bool)
    for one in steering:
        report = _reaching(reports, one.layer, n_computed)
        first = min(report["first"], n_computed)
        part = _changed(report, n_computed) != 0
        changed[first : first + len(part)] |= part
        if one.always_changes:
            for start, stop in within(spans(one.positions, n_prompt), 0, first):
                changed[start:stop] = True
    return int(changed.sum())


def unfit(report: Report, n_computed: int | None = None) -> str | None:
    """Why the first `n_computed` positions of a request give no answer: it was steered too far."""
    places = np.flatnonzero(_changed(report, n_computed) & UNFIT)
    if not len(places):
        return None
    return (
        f"steered as asked, the residual stream at position {report['first'] + int(places[0])} is more than "
        "the dtype holds or can be computed with; there is no answer. Steer less"
    )


def _changed(report: Report, n_computed: int | None) -> np.ndarray:
    """For each position from the first that was computed on, what changed it, as the kernel says."""
    found = np.frombuffer(report["changed"], np.uint16)
    return found if n_computed is None else found[: max(0, n_computed - report["first"])]


def captured(
    capture: Capture | None, reports: Sequence[Report | None], n_prompt: int, n_output: int, d_model: int
) -> tuple[Captured, ...]:
    """Captured residual streams, one record per layer; raises MorfiError unless every position is there."""
    if capture is None:
        return ()
    n_computed = n_prompt + n_output - 1
    check_captured(capture, reports, n_prompt, n_output)
    found = []
    for layer in capture.layers:
        report = _reaching(reports, layer, n_computed)
        positions, token_ids, data = report["captured"].get(str(layer), ([], [], b""))
        values = torch.from_numpy(np.frombuffer(data, np.float32).reshape(-1, d_model).copy())
        n = bisect.bisect_left(positions, n_computed)  # the engine may have begun a token more than needed
        found.append(Captured(layer, tuple(positions[:n]), tuple(token_ids[:n]), values[:n]))
    return tuple(found)


def check_captured(capture: Capture, reports: Sequence[Report | None], n_prompt: int, n_output: int) -> None:
    """Raises MorfiError unless every position that was asked for was captured, after every layer."""
    for layer in capture.layers:
        report = _reaching(reports, layer, n_prompt + n_output - 1)
        if report["failure"] is not None:
            raise MorfiError(f"what was captured cannot be written: {report['failure']}")
        n = report["n_captured"].get(str(layer), 0)
        wanted = n_positions(capture.positions, n_prompt, report["reached"])
        if n != wanted:
            raise MorfiError(
                f"layer {layer}: {n} positions were captured where {wanted} were asked for; none is given"
            )


def _reaching(reports: Sequence[Report | None], layer: int, n_computed: int) -> Report:
    """The report of the first worker that holds `layer`, if all that do saw the request to its end."""
    holding = [
        report
        for report in reports
        if report is not None and report["layers"][0] <= layer < report["layers"][1]
    ]
    for report in holding:
        if report["unproven"] is not None:
            raise MorfiError(report["unproven"])
        if report["reached"] < n_computed:
            raise MorfiError(
                f"layer {layer} was steered or captured up to position {report['reached']} of "
                f"{n_computed}; the answer is not what was asked for"
            )
    if not holding:
        raise MorfiError(
            f"no worker reports that layer {layer} was steered or captured: the answer is not what was "
            "asked for"
        )
    return holding[0]
