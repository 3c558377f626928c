"""vLLM's asynchronous engine as a server uses it: no steered answer leaves it before workers have reported.

The engine core is another process. A steered request asks for a report, which comes with its last output, or,
where this process found the end in the text, is fetched with those of all requests that end meanwhile; it is
checked before the last output goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineGenerateError

from morfi.checkpoints import Checkpoint
from morfi.engine.steering import Capture, Captured, Steering, to_json
from morfi.errors import InputError, MorfiError, reason_of
from morfi.serve.http.gate import ended
from morfi.serve.http.line_ends import LineEnds
from morfi.serve.http.metrics import STEERED_TOKENS, SWAPS
from morfi.serve.plugin import finite
from morfi.serve.plugin.admission import unsteerable
from morfi.serve.plugin.reports import Report, captured, detach, n_changed
from morfi.serve.plugin.requested import WITH_END, answer_ids
from morfi.serve.settings import ONE_ENGINE
from morfi.serve.weights.served import Served, check_swapped, first_refusal

_FOLLOWED = "morfi_followed"
ENDING_S = 10.0
_ON_ITS_WAY_S = 0.5
ABORTED = "abort"  # the finish reason of what `end_running` ended


@dataclass(slots=True)
class Followed:
    """One prompt that is steered or captured.

    Once checked, `n_tokens` says how many tokens were steered, of each answer, and `captured` holds what was
    captured of the only one.
    """

    steering: tuple[Steering, ...]
    capture: Capture | None = None
    prompt: tuple[int, ...] | None = None  # the tokens that positions were worked out for
    captured: tuple[Captured, ...] = ()
    n_tokens: list[int] = field(default_factory=list)
    request_id: str | None = None  # vLLM's own, as soon as there is one

    def attach(self, params: Any) -> Any:
        """`params` (vLLM's `SamplingParams`), with what makes the engine steer and follow the request."""
        specification = {**to_json(self.steering, self.capture), "report": WITH_END}
        params.extra_args = {**(params.extra_args or {}), "morfi": specification}
        setattr(params, _FOLLOWED, self)
        return params

    def request_ids(self, n: int) -> list[str]:
        """vLLM's ids of its answers; none where the request never came to be."""
        return [] if self.request_id is None else answer_ids(self.request_id, n)

    def check_prompt(self, token_ids: Sequence[int]) -> None:
        """Raises MorfiError where the prompt is another one than positions were worked out for."""
        if self.prompt is not None and tuple(token_ids) != self.prompt:
            raise MorfiError("the chat's tokens are not those that its turns were found in: no answer")

    def check(
        self,
        reports: Sequence[Sequence[Report | None]],
        n_prompt: int,
        n_output: Sequence[int],
        d_model: int,
    ) -> None:
        """Keeps what was done; raises MorfiError unless all was that was to be."""
        found = []
        for each, n in zip(reports, n_output, strict=True):
            found.append(n_changed(self.steering, each, n_prompt, n))
        if self.capture is not None:
            self.captured = captured(self.capture, reports[0], n_prompt, n_output[0], d_model)
        self.n_tokens = found


class SteeringLLM(AsyncLLM):  # type: ignore[misc]
    """vLLM's `AsyncLLM`, which follows requests that have a `Followed` attached, and takes new weights."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reports = Reports(self)
        self._line_ends = LineEnds(self.get_tokenizer())
        self._process_outputs = self.output_processor.process_outputs
        self.output_processor.process_outputs = self._process
        self.served: Served
        self.was_shut_down = False  # on purpose

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        """Ends the engine and its processes."""
        self.was_shut_down = True
        super().shutdown(*args, **kwargs)

    def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        """As vLLM's; a followed request raises MorfiError in place of its end unless it was steered.

        Where it ends with the line, the engine core ends it, a step sooner than this process would.
        """
        added = self._line_ends.add(sampling_params)
        followed: Followed | None = getattr(sampling_params, _FOLLOWED, None)
        outputs = _with_reason(super().generate(prompt, sampling_params, request_id, **options))
        outputs = finite.answers(outputs, steered=followed is not None)
        if added:
            outputs = self._line_ends.ended(outputs, request_id, added)
        if sampling_params.prompt_logprobs is not None and sampling_params.n > 1:
            outputs = _with_prompt_logprobs(outputs)
        return outputs if followed is None else self._follow(outputs, followed, sampling_params.n)

    async def add_request(self, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        """As vLLM's, and takes note of the id that workers know the request by."""
        queue = await super().add_request(request_id, prompt, params, *args, **kwargs)
        followed: Followed | None = getattr(params, _FOLLOWED, None)
        if followed is not None:
            followed.request_id = queue.request_id
            self.reports.expect(followed.request_ids(params.n))
        return queue

    def _process(self, outputs: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        states = self.output_processor.request_states
        self.reports.collect(outputs, states)
        self._line_ends.leave_to_text(outputs, states)
        return self._process_outputs(outputs, *args, **kwargs)

    async def _follow(
        self, outputs: AsyncGenerator[Any, None], followed: Followed, n: int
    ) -> AsyncGenerator[Any, None]:
        n_prompt, n_output, taken, aborted = 0, [0] * n, False, False
        try:
            async for output in outputs:
                if output.prompt_token_ids is not None:
                    n_prompt = len(output.prompt_token_ids)
                    followed.check_prompt(output.prompt_token_ids)
                for part in output.outputs:
                    n_output[part.index] += len(part.token_ids)
                # What was ended before its end was not steered to its end, and is not given as an answer.
                aborted = aborted or any(part.finish_reason == ABORTED for part in output.outputs)
                if output.finished and not aborted:
                    reports = await self.reports.take(followed.request_ids(n))
                    taken = True
                    followed.check(reports, n_prompt, n_output, self.model_config.get_hidden_size())
                    STEERED_TOKENS.inc(sum(followed.n_tokens))
                yield output
        finally:
            await outputs.aclose()
            if not taken:
                # Dropped or failed: nobody will ask for its reports, so workers must not keep them.
                self.reports.forget(followed.request_ids(n))

    async def capture(self, token_ids: Sequence[int], capture: Capture) -> tuple[Captured, ...]:
        """The residual streams of a prompt, a record per layer; raises Refused where it is ended early."""
        followed = Followed((), capture)
        params = SamplingParams(temperature=0, max_tokens=1, output_kind=RequestOutputKind.FINAL_ONLY)
        prompt = {"prompt_token_ids": list(token_ids)}
        async for _ in self.generate(prompt, followed.attach(params), f"capture-{uuid.uuid4().hex}"):
            pass
        if not followed.captured:
            raise ended()
        return followed.captured

    async def end_running(self) -> None:
        """Ends all requests that the engine has now: their last outputs say `ABORTED`."""
        await self.abort(list(self.output_processor.request_states), internal=True)

    async def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Serves `checkpoint` from now on, as `morfi.serve.engine.Engine.load_checkpoint`.

        The caller sees to it that no request comes; those of clients that hung up just now may still end.
        """
        arguments = self.served.load_arguments(checkpoint)
        try:
            async with asyncio.timeout(ENDING_S):
                while self.output_processor.has_unfinished_requests():
                    await asyncio.sleep(0.01)
        except TimeoutError as error:
            raise MorfiError(f"{checkpoint.name} cannot be loaded while requests are running") from error
        if refusal := first_refusal(await self.collective_rpc("morfi_prepare_weights", kwargs=arguments)):
            raise InputError(refusal)
        with self.served.becoming(checkpoint):
            refusals = await self.collective_rpc("morfi_swap_weights")
            await self.update_weight_version(checkpoint.sha256)
            if not await self.reset_prefix_cache():
                raise MorfiError("vLLM did not reset its prefix cache; are requests still running?")
            check_swapped(refusals)
        SWAPS.inc()


@dataclass(slots=True)
class _Round:
    """One call to the workers, for all requests that ended before it was made."""

    request_ids: list[str]
    task: asyncio.Task[list[list[Report | None]]]


class Reports:
    """The workers' reports: those that came with last outputs, and the others fetched, one call at a time."""

    def __init__(self, engine: SteeringLLM) -> None:
        self._engine = engine
        self._came: dict[str, list[Report | None]] = {}  # by request, until they are taken
        self._expected: set[str] = set()  # requests whose reports will be taken, or forgotten
        self._open: _Round | None = None  # the one that requests may still join
        self._last: asyncio.Task[Any] | None = None

    def expect(self, request_ids: Sequence[str]) -> None:
        """Keeps the reports of these requests, once they come."""
        self._expected.update(request_ids)

    async def take(self, request_ids: Sequence[str]) -> list[list[Report | None]]:
        """For each request the reports of all workers, which then do not keep them any longer."""
        missing = [request_id for request_id in request_ids if request_id not in self._came]
        if missing:
            joined = self._join(missing)
            start = len(joined.request_ids) - len(missing)
            # One that is cancelled must not take the others' reports with it.
            found = await asyncio.shield(joined.task)
            for request_id, fetched in zip(missing, found[start : start + len(missing)], strict=True):
                # Ended in the text here, and in the same step in the engine core, whose last output has them.
                if None in fetched:
                    await self._arrival(request_id)
                self._came.setdefault(request_id, fetched)
        self._expected.difference_update(request_ids)
        return [self._came.pop(request_id) for request_id in request_ids]

    async def _arrival(self, request_id: str) -> None:
        """Waits until a report has come that workers have handed out already; not for long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ON_ITS_WAY_S):
                while request_id not in self._came:
                    await asyncio.sleep(0.005)

    def collect(self, outputs: Sequence[Any], known: Container[str]) -> None:
        """Takes the reports out of the engine core's outputs; nobody wants those of unknown requests.

        `known` to this process are those whose end it has not found in the text yet.
        """
        for output in outputs:
            reports = detach(output)
            wanted = output.request_id in known or output.request_id in self._expected
            if reports is not None and wanted:
                self._came[output.request_id] = reports

    def forget(self, request_ids: Sequence[str]) -> None:
        """Makes nobody keep reports of these requests, soon."""
        self._expected.difference_update(request_ids)
        left = [request_id for request_id in request_ids if self._came.pop(request_id, None) is None]
        if left and not self._engine.errored:
            self._join(left)

    def _join(self, request_ids: Sequence[str]) -> _Round:
        if self._open is None:
            self._last = task = asyncio.ensure_future(self._call(self._last))
            self._open = _Round([], task)
        self._open.request_ids.extend(request_ids)
        return self._open

    async def _call(self, before: asyncio.Task[Any] | None) -> list[list[Report | None]]:
        if before is not None and not before.done():
            await asyncio.wait([before])
        round_ = self._open
        assert round_ is not None
        self._open = None
        workers = await self._engine.collective_rpc("morfi_take_reports", args=(round_.request_ids,))
        return [list(reports) for reports in zip(*workers, strict=True)]


async def _with_reason(outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """The outputs of a request; where vLLM fails on it, an error that says why, which vLLM's own does not."""
    try:
        async for output in outputs:
            yield output
    except EngineGenerateError as error:
        raise MorfiError(f"vLLM failed on the request: {reason_of(error.__cause__ or error)}") from error
    finally:
        await outputs.aclose()


async def _with_prompt_logprobs(outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """The outputs of a request for several answers, each with the prompt's log probabilities.

    In a stream vLLM gives them once, with whichever answer comes first, and its echo needs them for each.
    """
    found = None
    try:
        async for output in outputs:
            found = output.prompt_logprobs or found
            output.prompt_logprobs = found
            yield output
    finally:
        await outputs.aclose()


def start_async_engine(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> SteeringLLM:
    """vLLM, started on what `checkpoint` was made from; `settings` as `vllm.LLM` takes them.

    An unmerged checkpoint's base is served at first. Raises InputError for a model or settings with which
    nothing can be steered, and MorfiError where vLLM cannot start.
    """
    unmerged = checkpoint.adapter_dir is not None
    sha256 = checkpoint.base_sha256 if unmerged else checkpoint.sha256
    try:
        config = AsyncEngineArgs(**settings).create_engine_config(UsageContext.OPENAI_API_SERVER)
        if (reason := unsteerable(config)) is not None:
            raise InputError(reason)
        if config.parallel_config.data_parallel_size > 1:
            raise InputError(f"data parallelism cannot be used: {ONE_ENGINE}; is VLLM_DP_SIZE set?")
        engine: SteeringLLM = SteeringLLM.from_vllm_config(config, disable_log_stats=False)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise MorfiError(f"vLLM could not start on {checkpoint.name}: {reason_of(error)}") from error
    engine.served = Served(Path(settings["model"]), checkpoint.dtype, started_on=sha256, sha256=sha256)
    return engine


async def check_steerable(engine: SteeringLLM) -> None:
    """Raises InputError where nothing can be steered, and MorfiError where the engine's self test fails."""
    try:
        await engine.get_supported_tasks()  # before which the plugin tests an engine
    except Exception as error:
        raise MorfiError(f"vLLM could not start: {reason_of(error)}") from error
    if refusal := first_refusal(await engine.collective_rpc("morfi_unsteerable")):
        raise InputError(refusal)
