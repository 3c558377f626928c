"""morfi in vLLM: steering and capture for every engine of a process, loaded as a `vllm.general_plugins`.

`register` lists the functions of vLLM that are wrapped: admission of requests, keys of cached blocks and of
compiled graphs, loading of the model, what is asked of an engine that has been opened, preparation of a
step's inputs, the step of a worker and that of the engine core, and what is made of their outputs. Where one
of them is not what this module was written for, vLLM does not start.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from morfi.errors import InputError, MorfiError, reason_of
from morfi.serve.plugin import finite, plain
from morfi.serve.plugin.admission import admission_of, admit, unsteerable
from morfi.serve.plugin.reports import Reporting

SUPPORTED = "0.32"
_OURS = "morfi_wrapped"


def register() -> None:
    """Wraps vLLM's functions, once a process; raises RuntimeError where vLLM is not the expected one."""
    from vllm.config import VllmConfig
    from vllm.v1.core import block_pool, kv_cache_utils
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.output_processor import OutputProcessor, RequestState
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as V2Runner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    from vllm.v1.worker.worker_base import WorkerBase

    block = ("start_token_idx", "end_token_idx", "start_mm_idx")
    wraps: list[tuple[type | ModuleType, str, tuple[str, ...], Callable[..., Any]]] = [
        (InputProcessor, "process_inputs", ("request_id", "prompt", "params"), _process_inputs),
        (kv_cache_utils, "generate_block_hash_extra_keys", block, _block_keys),
        (block_pool, "generate_block_hash_extra_keys", block, _block_keys),  # in the events it publishes
        (OutputProcessor, "add_request", ("request", "prompt"), _add_request),
        (OutputProcessor, "process_outputs", ("engine_core_outputs",), _process_outputs),
        (RequestState, "make_request_output", ("new_token_ids",), _make_request_output),
        (RequestState, "_new_completion_output", ("token_ids", "finish_reason"), _new_completion_output),
        (VllmConfig, "compute_hash", (), _compute_hash),
        (CPUModelRunner, "load_model", (), _load_model),
        (CPUModelRunner, "_zero_block_ids", ("block_ids",), _zero_block_ids),
        (GPUModelRunner, "load_model", (), _load_model),
        (GPUModelRunner, "_prepare_inputs", ("scheduler_output", "num_scheduled_tokens"), _prepare_inputs_v1),
        (GPUModelRunner, "_dummy_run", ("num_tokens",), _dummy_run),
        (GPUModelRunner, "execute_model", ("scheduler_output",), _execute_model),
        (GPUModelRunner, "sample_tokens", ("grammar_output",), _sample_tokens),
        (V2Runner, "load_model", (), _load_model),
        (V2Runner, "prepare_inputs", ("scheduler_output", "batch_req_state"), _prepare_inputs_v2),
        (V2Runner, "execute_model", ("scheduler_output",), _execute_model),
        (V2Runner, "sample_tokens", ("grammar_output",), _sample_tokens),
        (EngineCore, "_initialize_kv_caches", ("vllm_config",), _initialize_kv_caches),
        (EngineCore, "get_supported_tasks", (), _get_supported_tasks),
        (EngineCore, "preprocess_add_request", ("request",), _preprocess_add_request),
        (EngineCore, "step", (), _step),
        (EngineCore, "step_with_batch_queue", (), _step),
    ]
    for owner, name, parameters, _ in wraps:
        _check(owner, name, parameters)
    finite.compute()
    Reporting.offer(WorkerBase)
    for owner, name, _, wrapper in wraps:
        _wrap(owner, name, wrapper)


def _wrap(owner: type | ModuleType, name: str, wrapper: Callable[..., Any]) -> None:
    original = owner.__dict__[name]
    if not hasattr(original, _OURS):
        setattr(owner, name, _wrapped(original, wrapper))


def _wrapped(original: Callable[..., Any], wrapper: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapper(original, self, *args, **kwargs)

    setattr(call, _OURS, True)
    return call


def _check(owner: type | ModuleType, name: str, parameters: tuple[str, ...]) -> None:
    import vllm

    where = owner.__name__ if isinstance(owner, ModuleType) else f"{owner.__module__}.{owner.__name__}"
    function = owner.__dict__.get(name)
    found = [] if function is None else list(inspect.signature(function).parameters)
    if function is None or tuple(found[1 : 1 + len(parameters)]) != parameters:
        raise RuntimeError(
            f"morfi's plugin cannot work with vLLM {vllm.__version__}: {where}.{name} is not "
            f"as in vLLM {SUPPORTED}. Install vLLM {SUPPORTED}, or set VLLM_PLUGINS to the other "
            "plugins you need (empty for none) to run vLLM without morfi's steering and capture"
        )


def _process_inputs(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    from vllm.exceptions import VLLMValidationError

    request = original(self, *args, **kwargs)
    params = request.sampling_params
    if params is not None and params.extra_args:
        try:
            if plain.asks(params.extra_args):
                admit(request, admission_of(self))
        except InputError as error:
            raise VLLMValidationError(str(error)) from error
    return request


def _block_keys(
    original: Callable[..., Any], request: Any, start: int, stop: int, mm: int
) -> tuple[tuple[Any, ...] | None, int]:
    from morfi.serve.plugin.block_keys import block_key

    keys, next_mm = original(request, start, stop, mm)
    own = block_key(request, start, stop)
    return (keys if own is None else (*(keys or ()), own)), next_mm


def _add_request(original: Callable[..., Any], self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
    original(self, request, *args, **kwargs)
    if request.sampling_params is not None and request.sampling_params.extra_args:
        plain.note(self.request_states[request.request_id], request.sampling_params.extra_args)


def _process_outputs(original: Callable[..., Any], self: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
    plain.take(self.request_states, outputs)
    return original(self, outputs, *args, **kwargs)


def _make_request_output(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    output = original(self, *args, **kwargs)
    if output is not None and output.finished:
        plain.hand_out_all(self, output)
    return output


def _new_completion_output(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    output = original(self, *args, **kwargs)
    if output.finish_reason is not None:
        plain.hand_out(self, output)
    return output


def _compute_hash(original: Callable[..., Any], self: Any) -> str:
    # Compiled graphs with the operation in them are not those of a vLLM without it.
    from morfi.engine import operations
    from morfi.kernels import residual
    from morfi.serve.plugin import decoder_layers, host_work, operation, structure

    arithmetic = (structure, decoder_layers, operation, host_work, residual, operations)
    source = "".join(map(inspect.getsource, arithmetic))
    return hashlib.sha256(f"{original(self)} {source}".encode()).hexdigest()[:10]


def _load_model(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> None:
    from morfi.serve.plugin import operation
    from morfi.serve.plugin.decoder_layers import attach

    _share_classes()
    original(self, *args, **kwargs)
    self.morfi_state = self.morfi_refusal = None
    try:
        self.morfi_state = attach(self)
    except InputError as error:  # it is served without
        architecture = self.vllm_config.model_config.architecture
        self.morfi_refusal = f"{architecture} cannot be steered or captured: {error}"
    operation.use(self.morfi_state)  # before graphs are captured


def _share_classes() -> None:
    # Imported by vLLM where it has no model of its own.
    from vllm.model_executor.models.transformers.base import Base

    decorate = "_decorate_cls_for_torch_compile"
    _check(Base, decorate, ("cls", "dynamic_arg_dims"))
    _wrap(Base, decorate, _decorate_class)


def _decorate_class(original: Callable[..., Any], self: Any, cls: type, *args: Any, **kwargs: Any) -> None:
    from morfi.serve.plugin.shared_classes import share

    plain = cls.__init__  # type: ignore[misc]
    original(self, cls, *args, **kwargs)
    if cls.__init__ is not plain:  # type: ignore[misc]
        share(cls, plain)


def _prepare_inputs_v1(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    found = original(self, *args, **kwargs)
    state = self.morfi_state
    if state is None or not (state.is_busy or state.shared_layers is not None):
        return found
    # Only now is the batch's book-keeping that of this step.
    batch = self.input_batch
    n = batch.num_reqs
    counts = args[1] if len(args) > 1 else kwargs["num_scheduled_tokens"]
    request_ids, starts = batch.req_ids[:n], batch.num_computed_tokens_cpu[:n]
    state.begin(request_ids, starts, counts)
    if state.shared_layers is not None:
        token_ids = np.split(_input_ids(self)[: counts.sum()].numpy(), counts.cumsum()[:-1])
        tables = batch.block_table.block_tables
        state.share(
            request_ids,
            starts.tolist(),
            [ids.tolist() for ids in token_ids],
            lambda index: _blocks(tables, index, int(starts[index])),
        )
    return found


def _blocks(tables: Any, index: int, length: int) -> bytes | None:
    """Names the blocks that hold the first positions of a request; None unless they hold just these."""
    if any(length % table.block_size for table in tables):
        return None
    ids = [table.get_numpy_array()[index, : length // table.block_size] for table in tables]
    return b"blocks" + b"".join(each.tobytes() for each in ids)


def _prepare_inputs_v2(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    batch = original(self, *args, **kwargs)
    state = self.morfi_state
    if state is not None and state.is_busy:
        n = batch.num_reqs
        state.begin(batch.req_ids[:n], batch.num_computed_tokens_np[:n], batch.num_scheduled_tokens[:n])
    return batch


def _dummy_run(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    _enter(self)
    return original(self, *args, **kwargs)


def _execute_model(
    original: Callable[..., Any], self: Any, scheduler_output: Any, *args: Any, **kwargs: Any
) -> Any:
    state = _enter(self)
    if kwargs.get("dummy_run"):
        return original(self, scheduler_output, *args, **kwargs)
    if state is None:
        _check_none_asks(scheduler_output, self.morfi_refusal)
        return original(self, scheduler_output, *args, **kwargs)
    for request_id in scheduler_output.finished_req_ids:
        state.finish(request_id)
    for new in scheduler_output.scheduled_new_reqs:
        # One that was preempted comes again in runner V2; it is known then.
        if new.sampling_params is not None and new.req_id not in state.live:
            state.add(new.req_id, new.prompt_len, new.sampling_params.extra_args)
    found = original(self, scheduler_output, *args, **kwargs)
    if state.has_work:
        state.end(_input_ids(self))
    return found


def _check_none_asks(scheduler_output: Any, refusal: str | None) -> None:
    """Raises RuntimeError rather than run unsteered what no one refused."""
    for new in scheduler_output.scheduled_new_reqs:
        if new.sampling_params is not None and plain.asks(new.sampling_params.extra_args):
            raise RuntimeError(refusal)


def _sample_tokens(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """No token leaves before it is known that its step did what it was to do: raises MorfiError else."""
    found = original(self, *args, **kwargs)
    state = self.morfi_state
    if state is None or state.device_work is None:
        return found
    steps = state.device_work.steps
    if hasattr(found, "get_output"):
        from morfi.serve.plugin.proven_output import ProvenOutput

        return ProvenOutput(found, steps, steps.last)
    if getattr(found, "sampled_token_ids", None):  # they are on the host: nothing is waited for
        steps.prove(steps.last)
    return found


def _initialize_kv_caches(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    # The workers have the model by now, and no request has come.
    refusals = self.model_executor.collective_rpc("morfi_unsteerable")
    self.morfi_refusal = next((one for one in refusals if one is not None), None)
    self.morfi_is_tested = self.morfi_refusal is not None or not _is_testable(self.vllm_config)
    return original(self, *args, **kwargs)


def _is_testable(config: Any) -> bool:
    # Engines of a data-parallel group would have to step together.
    is_alone = config.parallel_config.data_parallel_size == 1
    return is_alone and config.model_config.runner_type == "generate" and unsteerable(config) is None


def _get_supported_tasks(original: Callable[..., Any], self: Any) -> Any:
    # vLLM asks for this before an engine's first request, its `LLM` as soon as it is made.
    from morfi.serve.plugin.self_test import self_test

    if not (self.morfi_is_tested or self.scheduler.has_requests()):
        self.morfi_is_tested = True
        architecture = self.vllm_config.model_config.architecture
        try:
            fault = self_test(self)
        except Exception as error:
            raise MorfiError(f"{architecture} fails in the self test at start: {reason_of(error)}") from error
        if fault is not None:
            self.morfi_refusal = (
                f"{architecture} cannot be steered or captured: in the self test at start {fault}"
            )
            self.model_executor.collective_rpc("morfi_refuse", args=(self.morfi_refusal,))
    return original(self)


def _preprocess_add_request(
    original: Callable[..., Any], self: Any, request: Any, *args: Any, **kwargs: Any
) -> Any:
    # Those who call vLLM itself learn only here what the model is made of; vLLM ends the one request.
    params = request.sampling_params
    if self.morfi_refusal is not None and params is not None and plain.asks(params.extra_args):
        raise InputError(self.morfi_refusal)
    return original(self, request, *args, **kwargs)


def _step(original: Callable[..., Any], self: Any) -> Any:
    from morfi.serve.plugin.reports import attach

    requests = dict(self.scheduler.requests)  # those that end in this step will be gone
    outputs, executed = original(self)
    if outputs:
        finite.fail(self.scheduler, outputs)
        attach(self.model_executor, requests, outputs)
    return outputs, executed


def _zero_block_ids(_: Callable[..., Any], self: Any, block_ids: list[int]) -> None:
    # vLLM's leaves out layers with a sliding window.
    finite.zero_blocks(self.kv_caches, block_ids)


def _enter(runner: Any) -> Any:
    """Makes the runner's state that of the pass that follows, with nothing to do in it yet."""
    from morfi.serve.plugin import operation

    state = runner.morfi_state
    if state is not None:
        state.idle()
    operation.use(state)
    return state


def _input_ids(runner: Any) -> Any:
    buffers = getattr(runner, "input_buffers", None)  # runner V2's
    return runner.input_ids.gpu if buffers is None else buffers.input_ids
