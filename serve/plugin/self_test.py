"""A test of steering and capture when an engine starts: by requests, through its scheduler and its runner.

Every layer is asked for the residual stream of a prompt, and then a request for each layer is steered after
it along a known direction, by as much as the stream itself. After that layer it must have moved by just that,
at that position, after the one before not at all, and after the next one somehow. Layers that were taken for
each other in any way would break this order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from morfi.engine.directions import Direction
from morfi.engine.steering import MAX_CAPTURED_LAYERS, Capture, Steering, to_json
from morfi.errors import MorfiError
from morfi.serve.plugin.admission import Admission, admit
from morfi.serve.plugin.reports import Report, applied, captured, detach

_LENGTHS = (1, 2)  # of prompts: a step of one token a request runs in other CUDA graphs than longer ones
_TOKEN = 3
_MOST = 4096.0  # root mean square of what is added: a normal number of so many times fits in float16
_STEPS_EACH = 8  # of a request, at most, however few of them and of their tokens go into a step

Streams = Mapping[int, torch.Tensor]  # by layer: float32 [n_prompt, d_model]
Asked = tuple[tuple[Steering, ...], Capture]


class FaultError(MorfiError):
    """Steering or capture did something else than was asked; the engine goes on."""


def self_test(core: Any) -> str | None:
    """What steering and capture do wrong in vLLM's engine core, which has no requests yet; None for nothing.

    Leaves nothing there. Raises whatever a step raises; the core is of no use then.
    """
    model = core.vllm_config.model_config
    lengths = [n_prompt for n_prompt in _LENGTHS if n_prompt < model.max_model_len]
    test = _Test(core, max(8 * torch.finfo(model.dtype).eps, 1e-3))
    fault = None
    try:
        test.run(lengths[-1:] if model.enforce_eager else lengths)
    except FaultError as error:
        fault = str(error)
    core.collective_rpc("morfi_forget", args=(test.name,))
    core.reset_prefix_cache()
    return fault


class _Test:
    """The requests of a self test; distances up to `tolerance` of a stream's size are rounding errors."""

    def __init__(self, core: Any, tolerance: float) -> None:
        self._core = core
        self._tolerance = tolerance
        self._token = min(_TOKEN, core.vllm_config.model_config.get_vocab_size() - 1)
        self._admission = Admission.of(core.vllm_config)
        self._layers = layers = range(self._admission.n_layers)
        self._plain: list[Asked] = [
            ((), Capture(tuple(layers[first : first + MAX_CAPTURED_LAYERS]), "prompt"))
            for first in layers[::MAX_CAPTURED_LAYERS]
        ]
        vector = torch.randn(self._admission.d_model, generator=torch.Generator().manual_seed(0))
        self._vector = vector / _sizes(vector)
        self.name = self._admission.register(Direction(self._vector))

    def run(self, lengths: Sequence[int]) -> None:
        """Tests every layer by prompts of so many tokens, steered at the last; raises FaultError."""
        strengths = self._strengths(_joined(self._ask(self._plain, max(lengths, default=1))))
        for n_prompt in lengths:
            self._compare(n_prompt, [of_layer[n_prompt - 1] for of_layer in strengths])

    def _strengths(self, streams: Streams) -> list[list[float]]:
        """For each layer and position, what the direction times it has the size of the stream."""
        sizes = [_sizes(streams[layer]).tolist() for layer in self._layers]
        for layer, size in enumerate(map(sum, sizes)):
            if not size < float("inf"):
                raise FaultError(f"the residual stream after layer {layer} is not made of finite numbers")
        return [[min(size, _MOST) or 1.0 for size in of_layer] for of_layer in sizes]

    def _compare(self, n_prompt: int, strengths: Sequence[float]) -> None:
        """Compares a request for each layer, steered there by its strength, with unsteered ones."""
        steered: list[Asked] = [
            (
                (Steering(layer, self.name, strength=strengths[layer], positions="last_prompt"),),
                Capture(tuple(self._layers[max(0, layer - 1) : layer + 2]), "prompt"),
            )
            for layer in self._layers
        ]
        # In one step where they fit: how sums are rounded depends on it.
        found = self._ask([*self._plain, *steered], n_prompt)
        streams = _joined(found[: len(self._plain)])
        for layer, own in zip(self._layers, found[len(self._plain) :], strict=True):
            change = torch.zeros_like(streams[layer])
            change[-1] = strengths[layer] * self._vector
            _check(layer, own, streams, change, self._tolerance)

    def _ask(self, wanted: Sequence[Asked], n_prompt: int) -> list[Streams]:
        """What each of `wanted` captures of a prompt; raises FaultError unless all is reported as done."""
        reports = self._reports(wanted, n_prompt)
        found: list[Streams] = []
        for (steering, capture), own in zip(wanted, reports, strict=True):
            try:
                done = applied(steering, own, n_prompt, 1)
                rows = captured(capture, own, n_prompt, 1, self._admission.d_model)
            except MorfiError as error:
                raise FaultError(str(error)) from error
            for one in done:
                if one.n_tokens != 1:
                    layer = one.steering.layer
                    raise FaultError(
                        f"layer {layer} reports {one.n_tokens} steered positions where 1 was to be"
                    )
            found.append({one.layer: one.values for one in rows})
        return found

    def _reports(self, wanted: Sequence[Asked], n_prompt: int) -> list[Sequence[Report | None]]:
        """The workers' reports on a request for each of `wanted`, after all have ended."""
        core = self._core
        ids = [f"morfi-self-test-{n_prompt}-{number}" for number in range(len(wanted))]
        for request_id, (steering, capture) in zip(ids, wanted, strict=True):
            request = _request(request_id, [self._token] * n_prompt, to_json(steering, capture))
            admit(request, self._admission)
            core.add_request(*core.preprocess_add_request(request))
        reports: dict[str, Sequence[Report | None]] = {}
        for _ in range(_STEPS_EACH * len(wanted)):
            if not (core.scheduler.has_requests() or core.batch_queue):  # workers know that all have ended
                return [reports.get(request_id, ()) for request_id in ids]
            outputs, _ = core.step_fn()
            for of_client in (outputs or {}).values():
                reports |= {one.request_id: detach(one) or () for one in of_client.outputs}
        raise MorfiError(f"{len(wanted)} requests of {n_prompt} tokens do not come to their end")


def _request(request_id: str, prompt: list[int], specification: Mapping[str, Any]) -> Any:
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    # With a seed no random numbers are drawn that later requests would get.
    params = SamplingParams(
        temperature=0.0, max_tokens=1, seed=0, detokenize=False, extra_args={"morfi": specification}
    )
    return EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=prompt,
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def _check(layer: int, own: Streams, streams: Streams, change: torch.Tensor, tolerance: float) -> None:
    """Raises FaultError unless `own`, steered after `layer`, is what `streams` are but for `change`."""
    steered = f"a request steered after layer {layer}"
    before, here, after = (own.get(layer + step) for step in (-1, 0, 1))
    if before is not None and _off(before, streams[layer - 1], tolerance):
        raise FaultError(f"{steered} was changed after layer {layer - 1}")
    assert here is not None
    off = _off(here, streams[layer] + change, tolerance)
    moved, asked = (here - streams[layer])[-1], change[-1]
    if len(here) - 1 in off:
        share = float(moved @ asked / asked.square().sum())
        aside = float(_sizes(moved - share * asked) / _sizes(asked))
        raise FaultError(
            f"{steered} was moved there by {share:.3g} of what was asked, and by {aside:.3g} aside"
        )
    if off:
        raise FaultError(f"{steered} at position {len(here) - 1} was changed at position {off[0]}")
    if after is not None and _sizes((after - streams[layer + 1])[-1]) <= tolerance * _sizes(asked):
        raise FaultError(f"{steered} was not changed after layer {layer + 1}")


def _off(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> list[int]:
    """The rows of `found` that are farther from `expected` than `tolerance` times its size, or NaN."""
    is_right = _sizes(found - expected) <= tolerance * _sizes(expected)
    return [row for row, right in enumerate(is_right.tolist()) if not right]


def _sizes(values: torch.Tensor) -> torch.Tensor:
    """The root mean square of each row."""
    return values.square().mean(-1).sqrt()


def _joined(streams: Sequence[Streams]) -> Streams:
    return {layer: values for own in streams for layer, values in own.items()}
