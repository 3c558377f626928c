"""Answers that are not made of numbers: found, failed by name, and kept from touching other requests.

Where a residual stream overflows, NaN goes through all that follows of its request: keys and values, and
logits. Its blocks of the KV cache go to others when it has ended. A block that another request has filled in
part is read whole, and what is masked out counts 0 times its value, which for NaN is NaN. So every block is
zeroed when it is handed out, and a request whose logits are not finite ends with an error.
"""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import torch

from morfi.engine.directions import unpack
from morfi.engine.operations import Operation
from morfi.errors import InputError, MorfiError
from morfi.serve.plugin.joint import Entry

NOT_FINITE = "the model's logits are not finite numbers"
MOST_NORM = 1e18
MOST_FLOAT16 = 32752.0


def compute() -> None:
    """Makes vLLM's runners of this process look for logits that are not finite, and zero new blocks."""
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.worker import gpu_model_runner
    from vllm.v1.worker.gpu.sample import sampler

    os.environ["VLLM_COMPUTE_NANS_IN_LOGITS"] = "1"
    gpu_model_runner.count_nans_per_row = rows_not_finite
    sampler.get_num_nans = rows_not_finite
    KVCacheConfig.needs_kv_cache_zeroing = property(lambda _: True)


def check_amounts(parts: Sequence[tuple[Entry, bytes]], dtype: str) -> None:
    """Raises InputError unless a residual stream of `dtype` can take these changes all at once.

    In float32 and bfloat16 the norm of what is put in is bounded by MOST_NORM: the norms of the model square
    it in float32, to 1e36 of the 3e38 that it holds. In float16 each element is bounded by half of what it
    holds; the other half is left to the model's own stream. What grows with the stream, the latents of SAEs
    that rescale it, has no bound before the stream is there: the operation finds what does not fit.
    """
    most = MOST_FLOAT16 if dtype == "float16" else MOST_NORM
    parts = [one for one in parts if not _grows(one[1], one[0].operation)]
    at_most = sum(abs(entry.put_in) * max(_sizes(packed, entry.operation)) for entry, packed in parts)
    if at_most <= most:
        return
    total = torch.stack([entry.put_in * _put_in(packed, entry.operation) for entry, packed in parts]).sum(0)
    size = float(total.abs().max() if dtype == "float16" else total.norm())
    if not size <= most:
        where = "an element of the residual stream" if dtype == "float16" else "the residual stream"
        raise InputError(
            f"steering after layer {parts[0][0].layer} would move {where} by {size:g}, more than {dtype} can "
            f"be computed with (at most {most:g}); steer less"
        )


@functools.lru_cache(maxsize=512)
def _grows(packed: bytes, operation: Operation) -> bool:
    """Whether a strength of 1 puts in the more, the larger the norm of the stream is."""
    return not operation.is_sum and unpack(packed).norm_rescaled


@functools.lru_cache(maxsize=512)
def _sizes(packed: bytes, operation: Operation) -> tuple[float, float]:
    """The norm and the largest element of what a strength of 1 puts in."""
    vector = _put_in(packed, operation)
    return float(vector.norm()), float(vector.abs().max())


def _put_in(packed: bytes, operation: Operation) -> torch.Tensor:
    """The vector that a strength of 1 adds along a direction: float64 [d_model]."""
    direction = unpack(packed)
    vector = direction.vector.double()
    is_unit = operation.is_sum and direction.encoder is not None
    return vector / vector.norm() if is_unit else vector


def rows_not_finite(logits: torch.Tensor) -> torch.Tensor:
    """1 for each row of `logits` [n, vocabulary] that holds NaN or infinity, else 0: int32 [n].

    In place of vLLM's count of NaN, which takes a hundred times as long on a CPU. Minus infinity is what
    tokens have that may not be chosen.
    """
    return (~logits.amax(1).isfinite()).int()


def zero_blocks(kv_caches: Sequence[torch.Tensor], block_ids: Sequence[int]) -> None:
    """Zeroes these blocks of each layer's cache [n_blocks, ...]."""
    ids = torch.tensor(block_ids)
    for cache in {cache.data_ptr(): cache for cache in kv_caches}.values():
        cache.index_fill_(0, ids, 0.0)


def fail(scheduler: Any, outputs: Mapping[int, Any]) -> None:
    """Ends the requests of a step whose logits are not finite with an error, in place of their answer.

    In the engine core: `outputs` are what the step made for each client.
    """
    from vllm.v1.engine import FinishReason
    from vllm.v1.request import RequestStatus

    running = []
    for of_client in outputs.values():
        for output in of_client.outputs:
            if not output.num_nans_in_logits:
                continue
            if output.finish_reason is None:
                running.append(output.request_id)
            output.finish_reason, output.stop_reason = FinishReason.ERROR, NOT_FINITE
            output.new_token_ids = []
            output.new_logprobs = output.new_prompt_logprobs_tensors = None
    if running:
        scheduler.finish_requests(running, RequestStatus.FINISHED_ERROR)


def check(part: Any, *, steered: bool) -> None:
    """Raises MorfiError for an answer (vLLM's `CompletionOutput`) that the engine ended with an error."""
    if part.finish_reason != "error":
        return
    if part.stop_reason != NOT_FINITE:
        raise MorfiError('vLLM ended the request with "error"; there is no answer')
    cause = (
        "its steering takes the residual stream out of what the dtype holds, or the checkpoint gives no "
        "numbers by itself; steer less, or serve it in bfloat16 or float32"
        if steered
        else "the weights are broken, or the dtype is too small for them; check the files, or serve it in "
        "bfloat16 or float32"
    )
    raise MorfiError(f"{NOT_FINITE}: {cause}. There is no answer")


async def answers(outputs: AsyncGenerator[Any, None], *, steered: bool) -> AsyncGenerator[Any, None]:
    """vLLM's outputs of a request; raises MorfiError in place of one that `check` does not pass."""
    try:
        async for output in outputs:
            for part in output.outputs:
                check(part, steered=steered)
            yield output
    finally:
        await outputs.aclose()
