"""The one place that starts vLLM: an engine in this process that answers batches of prompts."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from morfi.checkpoints import Checkpoint
from morfi.checkpoints.tokenizer import open_tokenizer, tokenizer_folder
from morfi.checkpoints.vocabulary import newline_tokens
from morfi.device import device_name, free_memory, is_gpu
from morfi.engine.protocol import Completion, Sampling, check_prompts
from morfi.engine.shards import write_requests
from morfi.engine.steering import Capture, Steering, to_json
from morfi.errors import InputError, MorfiError, reason_of
from morfi.files import whole_folder
from morfi.serve import settings as engine_settings
from morfi.serve.plugin import finite
from morfi.serve.plugin.admission import Admission, admission_of
from morfi.serve.plugin.reports import Report, applied, captured, check_captured, unfit
from morfi.serve.plugin.requested import OpenShards, Wanted, answer_ids, wanted_of
from morfi.serve.processes import naming_death, quiet
from morfi.serve.weights.served import Served, first_refusal

if TYPE_CHECKING:
    from vllm import SamplingParams

    from morfi.engine.directions import DecoderRows, Direction, SaeLatents
    from morfi.engine.protocol import MergeDifference, StartEngine


class Engine:
    """A vLLM engine over one checkpoint; a `morfi.engine.protocol.Engine` and a context manager.

    >>> with Engine(Path("my-model"), dtype="float32", context=1024) as engine:
    ...     (answer,) = engine.generate([[504, 3575, 282]], Sampling(max_tokens=8))[0]
    """

    def __init__(
        self,
        model_dir: Path,
        *,
        dtype: str,
        context: int,
        seed: int = 0,
        overrides: Mapping[str, Any] | None = None,
        verbose: bool = False,
        sha256: str | None = None,
    ) -> None:
        """Loads the checkpoint in `model_dir`, for requests of up to `context` tokens; takes seconds.

        `sha256` is the checkpoint's; without it the engine cannot load another one. Raises InputError for an
        unknown engine setting and MorfiError where vLLM cannot start.
        """
        gpu = is_gpu()
        found = open_tokenizer(model_dir)
        engine_settings.prepare_process(gpu=gpu, verbose=verbose, overrides=overrides)
        with quiet(verbose):
            from vllm import LLM

            if not gpu:
                import morfi.serve.cpu_norm  # noqa: F401 - registers what the settings name
            from morfi.serve.plugin import hooks

            hooks.register()
            _check_known(overrides or {})
            self._settings = engine_settings.engine_arguments(
                model_dir,
                dtype=dtype,
                context=context,
                seed=seed,
                gpu=gpu,
                overrides=overrides or {},
                tokenizer=tokenizer_folder(found, model_dir),
            )
            try:
                self._llm: Any = LLM(**self._settings)
            except MorfiError:
                raise
            except Exception as error:  # whatever the loading of a model raises
                said = f"{reason_of(error)} (-v shows vLLM's log)"
                raise MorfiError(f"vLLM could not start on {model_dir}: {said}") from error
        if refusal := first_refusal(self._core.collective_rpc("morfi_unsteerable")):
            self._admission.refusal = refusal
        self._served = Served(model_dir, dtype, started_on=sha256, sha256=sha256)
        self._tokenizer = found.tokenizer
        self._newline_ids = newline_tokens(self._tokenizer)
        self._newline_set = frozenset(self._newline_ids)
        self._request_number = itertools.count()
        self._shards: OpenShards | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """The arguments the engine was started with, without paths."""
        return {key: value for key, value in self._settings.items() if key not in ("model", "tokenizer")}

    @property
    def checkpoint_sha256(self) -> str | None:
        """The sha256 of the checkpoint that is served; None if it is not known, or after a failed load."""
        return self._served.sha256 if self._served.answers else None

    @property
    def device(self) -> str:
        """The device's name and size."""
        return device_name()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        on_finished: Callable[[int], None] | None = None,
        *,
        steering: Sequence[Sequence[Steering]] | None = None,
        capture: Capture | Sequence[Capture | None] | None = None,
    ) -> list[list[Completion]]:
        """The completions of each prompt (token ids), in the order of `prompts`, `n` as its sampling says.

        `steering` gives each prompt its own steerings, none or several; `capture` is one for all prompts or
        one for each. Each completion then says what was applied to it and holds what was captured. Raises
        InputError, before any request runs, for a specification that this engine cannot follow, and
        MorfiError where one was not followed to the letter, or after a `load_checkpoint` that failed, until
        one succeeds.
        """
        self._served.check_answers()
        core = self._core
        wanted = self._wanted(prompts, sampling, steering, capture)
        params = self._params_of(wanted)
        place: dict[str, int] = {}
        outputs: list[Any] = [None] * len(prompts)
        # vLLM's own ids of the requests that are steered or captured, by place.
        followed: dict[int, list[str]] = {}
        with naming_death():
            try:
                for index, prompt in enumerate(prompts):
                    request_id = f"morfi-{next(self._request_number)}"
                    place[request_id] = index
                    own_id = core.add_request(request_id, {"prompt_token_ids": list(prompt)}, params[index])
                    if wanted[index].is_followed:
                        followed[index] = answer_ids(own_id, wanted[index].sampling.n)
                while core.has_unfinished_requests():
                    ended = [output for output in core.step() if output.finished]
                    for output in ended:
                        outputs[place.pop(output.request_id)] = output
                    if ended and on_finished is not None:
                        on_finished(sum(len(output.outputs) for output in ended))
            finally:
                # Reached with requests in flight only on an error or Ctrl-C: leave nothing running behind.
                if place:
                    core.abort_request(list(place))
                reports = self._take_reports(followed)
        _check_answers(outputs, wanted, reports)
        completions = self._completions(outputs)
        for index, parts in reports.items():
            try:
                completions[index] = [
                    self._followed(completion, wanted[index], report, len(prompts[index]), sample)
                    for sample, (completion, report) in enumerate(zip(completions[index], parts, strict=True))
                ]
            except MorfiError as error:
                raise MorfiError(f"request {index} of {len(prompts)}: {error}") from error
        return completions

    @contextlib.contextmanager
    def shards(self, folder: Path, *, shard_bytes: int = 256 << 20) -> Iterator[None]:
        """Writes what is captured in the block to files in `folder` while the model runs.

        `morfi.engine.shards.read_shards` reads them; requests are numbered in the order in which the calls of
        `generate` in the block name them. The completions then hold nothing captured. The folder appears,
        in place of one that was there, when the block has ended without an error. Where the disk is slower
        than the model, the model waits. Raises MorfiError where the files cannot be written.
        """
        if self._shards is not None:
            raise ValueError("shards are being written already")
        rpc = self._core.collective_rpc
        with whole_folder(folder) as part:
            rpc("morfi_open_shards", args=(str(part.absolute()), shard_bytes))
            self._shards = shards = OpenShards()
            try:
                yield
            finally:
                self._shards = None
                failure = first_refusal(rpc("morfi_close_shards"))
            if failure is not None:
                raise MorfiError(f"{folder} cannot be written: {failure}; make room and capture again")
            write_requests(part, shards.computed)

    def register(self, what: Direction | SaeLatents | DecoderRows) -> str:
        """Makes a direction or SAE known; returns the name, its sha256, that `Steering` or `Latent` take.

        Registered twice, it must be released twice. Raises InputError where it does not fit the model.
        """
        return self._admission.register(what)

    def release(self, name: str) -> None:
        """Undoes one `register`; raises InputError for a name that is not registered."""
        self._admission.registry.release(name)

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Serves `checkpoint` from now on: of the model the engine was started on, or that model.

        Adapters, and whole models of its form, come from `morfi.checkpoints.resolve_live`. Raises InputError
        for a checkpoint that cannot be loaded here; what was served before is served still. Raises MorfiError
        where it fails after that: weights may have changed, and the engine refuses to generate until a load
        succeeds.
        """
        self._served.load(self._core, checkpoint, self.reset_prefix_cache)

    def compare_merge(self, checkpoint: Checkpoint) -> MergeDifference | None:
        """How its live weights differ from a merge on the CPU; it must be the adapter loaded last.

        None where weights are not merged in place. Raises InputError for what `load_checkpoint` refuses.
        """
        return self._served.compare_merge(self._core, checkpoint)

    def reset_prefix_cache(self) -> None:
        """Forgets every cached prefix, so that what follows does not depend on what came before."""
        if not self._core.reset_prefix_cache():
            raise MorfiError("vLLM did not reset its prefix cache; are requests still running?")

    def close(self) -> None:
        """Stops the engine and frees its memory; the engine cannot be used afterwards."""
        from morfi.serve.plugin import operation

        if self._llm is None:
            return
        self._core.engine_core.shutdown()
        operation.use(None)  # or the tables and directions of this engine's worker would stay
        self._llm = None
        free_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wanted(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        steering: Sequence[Sequence[Steering]] | None,
        capture: Capture | Sequence[Capture | None] | None,
    ) -> list[Wanted]:
        """The steering and capture of each prompt; raises InputError for what this engine cannot do."""
        check_prompts(prompts, self._settings["max_model_len"], self._core.model_config.get_vocab_size())
        wanted = wanted_of(len(prompts), sampling, steering, capture)
        self._check_seeds([one.sampling for one in wanted])
        if self._shards is not None:
            first, self._shards.n_requests = self._shards.n_requests, self._shards.n_requests + len(prompts)
            wanted = [
                replace(one, shard=first + number) if one.capture is not None else one
                for number, one in enumerate(wanted)
            ]
        # Where several meet depends on the length of the prompt.
        lengths = [
            len(prompt) if len(one.steering) > 1 else 1 for prompt, one in zip(prompts, wanted, strict=True)
        ]
        asked = {
            (one.steering, one.capture, n) for one, n in zip(wanted, lengths, strict=True) if one.is_followed
        }
        for each, taken, n_prompt in asked:
            self._admission.directions(each, taken, {}, n_prompt)
        return wanted

    def _check_seeds(self, samplings: Sequence[Sampling]) -> None:
        in_parts = self._settings.get("enable_chunked_prefill", False) is not False
        if in_parts and not is_gpu() and any(one.temperature and one.seed is not None for one in samplings):
            raise InputError(
                f"a seed was given, and enable_chunked_prefill on a CPU: {engine_settings.NO_OFFSET}; leave "
                "one of them out"
            )

    def _params_of(self, wanted: Sequence[Wanted]) -> list[SamplingParams]:
        """vLLM's parameters for each prompt; equal ones share one object."""
        made = {one: self._params(one) for one in set(wanted)}
        return [made[one] for one in wanted]

    def _take_reports(self, followed: Mapping[int, Sequence[str]]) -> dict[int, list[list[Report | None]]]:
        """The reports of all workers for each completion of each followed request."""
        request_ids = [request_id for ids in followed.values() for request_id in ids]
        if not request_ids:
            return {}
        workers = self._core.collective_rpc("morfi_take_reports", args=(request_ids,))
        of_request = iter([list(reports) for reports in zip(*workers, strict=True)])
        return {index: [next(of_request) for _ in ids] for index, ids in followed.items()}

    def _followed(
        self,
        completion: Completion,
        wanted: Wanted,
        reports: Sequence[Report | None],
        n_prompt: int,
        sample: int,
    ) -> Completion:
        n_output = len(completion.token_ids)
        completion = replace(completion, applied=applied(wanted.steering, reports, n_prompt, n_output))
        if wanted.shard is None or self._shards is None or wanted.capture is None:
            kept = captured(wanted.capture, reports, n_prompt, n_output, self._admission.d_model)
            return replace(completion, captured=kept)
        check_captured(wanted.capture, reports, n_prompt, n_output)
        self._shards.computed.append((wanted.shard, sample, n_prompt + n_output - 1))
        return completion

    @property
    def _core(self) -> Any:
        """vLLM's engine; raises MorfiError after `close`."""
        if self._llm is None:
            raise MorfiError("the engine is closed; start another one")
        return self._llm.llm_engine

    @property
    def _admission(self) -> Admission:
        return admission_of(self._core.input_processor)

    def _params(self, wanted: Wanted) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling, extra = wanted.sampling, None
        if wanted.is_followed:
            plain = to_json(wanted.steering, wanted.capture)
            extra = {"morfi": {**plain, "report": True, "shard": wanted.shard}}
        # Stopping on token ids and decoding whole answers later spares the incremental detokenizer,
        # which looks for a stop string after every token.
        return SamplingParams(
            n=sampling.n,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            seed=sampling.seed,
            max_tokens=sampling.max_tokens,
            stop_token_ids=self._newline_ids,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,  # each request gets a shallow copy, of which admission replaces what it changes
            extra_args=extra,
        )

    def _own_ids(self, part: Any) -> list[int]:
        """The ids of an answer without its end token, which need not be a special one."""
        ids = list(part.token_ids)
        # A token that holds a newline ends an answer too, and may begin with text.
        is_end = part.finish_reason == "stop" and part.stop_reason not in self._newline_set
        return ids[:-1] if is_end else ids

    def _completions(self, outputs: Sequence[Any]) -> list[list[Completion]]:
        parts = [part for output in outputs for part in output.outputs]
        texts = self._tokenizer.batch_decode(
            [self._own_ids(part) for part in parts], skip_special_tokens=True
        )
        decoded = iter(zip(parts, texts, strict=True))
        return [
            [
                _completion(part, text, output.num_cached_tokens or 0)
                for part, text in itertools.islice(decoded, len(output.outputs))
            ]
            for output in outputs
        ]


def start_engine(
    checkpoint: Checkpoint,
    *,
    context: int,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    verbose: bool = False,
) -> Engine:
    """The engine that serves `checkpoint`, an adapter merged or not; the rest as for `Engine`.

    >>> with start_engine(resolve("smollm2"), context=256) as engine:
    ...     answers = engine.generate([[504, 3575, 282]], Sampling(max_tokens=8))
    """
    if not isinstance(checkpoint, Checkpoint):
        raise InputError(f"an engine starts on a checkpoint; give resolve({checkpoint!r})")
    unmerged = checkpoint.adapter_dir is not None
    engine = Engine(
        checkpoint.model_dir,
        dtype=checkpoint.dtype,
        context=context,
        seed=seed,
        overrides=overrides,
        verbose=verbose,
        sha256=checkpoint.base_sha256 if unmerged else checkpoint.sha256,
    )
    if unmerged:
        try:
            engine.load_checkpoint(checkpoint)
        except BaseException:
            engine.close()
            raise
    return engine


if TYPE_CHECKING:
    _keeps_the_protocol: StartEngine = start_engine


def engine_overrides(pairs: Sequence[str], *, verbose: bool = False) -> dict[str, Any]:
    """The engine settings in `pairs`, each "key=value", all of them known to the installed vLLM.

    Raises InputError for one that is not, or with which an engine answers wrongly; imports vLLM, which takes
    seconds, only when there are any.
    """
    overrides = engine_settings.parse_overrides(pairs)
    engine_settings.check_sound(overrides, gpu=is_gpu(), seeded=True)
    if overrides:
        engine_settings.prepare_process(gpu=is_gpu(), verbose=verbose, overrides=overrides)
        with quiet(verbose):
            _check_known(overrides)
    return overrides


def _check_known(overrides: Mapping[str, Any]) -> None:
    from vllm.engine.arg_utils import EngineArgs

    engine_settings.check_known(overrides, list(EngineArgs.__dataclass_fields__))


def _check_answers(
    outputs: Sequence[Any], wanted: Sequence[Wanted], reports: Mapping[int, Sequence[Sequence[Report | None]]]
) -> None:
    """Raises MorfiError for the first request, counted from 0, that vLLM ended without an answer."""
    for index, output in enumerate(outputs):
        for part in output.outputs:
            try:
                finite.check(part, steered=bool(wanted[index].steering))
            except MorfiError as error:
                own = [report for of_sample in reports.get(index, ()) for report in of_sample if report]
                reason = next(filter(None, map(unfit, own)), str(error))
                raise MorfiError(f"request {index} of {len(outputs)}: {reason}") from error


def _completion(part: Any, text: str, n_cached_tokens: int) -> Completion:
    if part.finish_reason not in ("stop", "length"):
        raise MorfiError(f'vLLM ended a request with "{part.finish_reason}"; no answer is scored for it')
    return Completion(
        text=text.split("\n", 1)[0],
        token_ids=tuple(part.token_ids),
        finish_reason=part.finish_reason,
        n_cached_tokens=n_cached_tokens,
    )
