"""The decoder layers of a loaded model, and what of their output is the residual stream: found by trying.

Nothing here is a list of names. A few rows are put through the model without a cache, and what its layers
return is changed in place. What the next layer is handed must be that, bit for bit; what the model makes of
it says what the residual stream is: the sum of two tensors where only the sum matters, or the first where
the second does not matter. A model with neither is served, and not steered.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from morfi.engine.decoder import decoder_layers
from morfi.errors import InputError, reason_of

_N_ROWS = 7
_STEPS = 32  # of a grid from 0 to a tensor's largest number: sums of its points and of noise on it are exact
# Of the norm of the model's output. Noise moves it by 1.2 or more, what leaves the stream as it is by 0, or
# by the rounding of kernels that add up in another order. Were the stream h + 0.9 r, what leaves h + r as
# it is would move it by 0.24 or more in the architectures of docs/models.md, and nowhere by less than this:
# noise has at least a quarter of the stream's size.
_SAME = 0.02


@dataclass(frozen=True, slots=True)
class Structure:
    """The decoder layers of one worker, and how they hand on the residual stream."""

    layers: torch.nn.ModuleList  # of the whole model, with placeholders for those of other workers
    own: range
    is_sum: bool  # whether the residual stream after a layer is the sum of the two tensors that it returns
    by_rows: bool  # whether each tensor that a layer takes has the rows of the step first


def structure_of(runner: Any) -> Structure:
    """The structure of the model of a vLLM model runner; raises InputError where it cannot be steered."""
    from vllm.distributed import get_pp_group
    from vllm.model_executor.models.utils import PPMissingLayer

    model, config = runner.get_model(), runner.vllm_config.model_config
    _check_scale(config)
    layers = decoder_layers(model, config.get_total_num_hidden_layers())
    places = [place for place, layer in enumerate(layers) if not isinstance(layer, PPMissingLayer)]
    if not places:
        raise InputError("a worker has none of its layers")
    own = range(places[0], places[-1] + 1)
    if any("forward" in vars(layers[place]) for place in own):
        raise InputError("the forward of its layers is not that of their class")
    trial = Trial(
        [layers[place] for place in own],
        config.get_hidden_size(),
        lambda: _put_through(runner),
        is_last=get_pp_group().is_last_rank,
    )
    try:
        is_sum = trial.is_sum()
    except InputError:
        raise
    except Exception as error:  # whatever a model raises that cannot be run like this
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise InputError(f"a trial of its layers ended with {reason}") from error
    return Structure(layers, own, is_sum, trial.by_rows)


def _check_scale(config: Any) -> None:
    """Raises InputError for a model of DeepSeek's kind in float16, where vLLM divides its residual stream."""
    factor = getattr(config.hf_text_config, "routed_scaling_factor", None)
    if config.dtype == torch.float16 and factor not in (None, 1):
        raise InputError(
            f"in float16 vLLM computes with its residual stream divided by {factor:g}; give --dtype bfloat16"
        )


def parts(output: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The hidden states that a layer returns, and the tensor that comes with them, if one does."""
    if isinstance(output, torch.Tensor):
        return output, None
    hidden, *rest = output
    is_like = len(rest) == 1 and isinstance(rest[0], torch.Tensor) and rest[0].shape == hidden.shape
    return hidden, rest[0] if is_like else None


def _put_through(runner: Any) -> torch.Tensor:
    """The output of a runner's model for a few rows, with no cache and nothing compiled."""
    from vllm.distributed import get_pp_group
    from vllm.forward_context import set_forward_context

    config, model, device = runner.vllm_config, runner.get_model(), runner.device
    positions = torch.arange(_N_ROWS, device=device)
    before = None
    if not get_pp_group().is_first_rank:
        noise = torch.Generator().manual_seed(1)
        before = model.make_empty_intermediate_tensors(_N_ROWS, config.model_config.dtype, device)
        for tensor in before.tensors.values():
            tensor.copy_(torch.randn(tensor.shape, generator=noise))
    with (
        torch.inference_mode(),
        _without_attention(model),
        set_forward_context(None, config, _N_ROWS, skip_compiled=True),
    ):
        found = model(
            input_ids=positions + 3,
            positions=positions.expand(3, -1) if config.model_config.uses_mrope else positions,
            intermediate_tensors=before,
            inputs_embeds=None,
        )
    if isinstance(found, torch.Tensor | tuple):
        return parts(found)[0]
    return torch.cat([tensor.flatten() for tensor in found.tensors.values()])


@contextlib.contextmanager
def _without_attention(model: torch.nn.Module) -> Iterator[None]:
    """Makes attention give zeros: without a cache some of vLLM's gives what lay in memory before."""
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    def zeroed(forward: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            found = forward(*args, **kwargs)
            return torch.zeros_like(found) if isinstance(found, torch.Tensor) else found

        return call

    layers: list[Any] = [module for module in model.modules() if isinstance(module, AttentionLayerBase)]
    for layer in layers:
        layer.forward = zeroed(layer.forward)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@dataclass(slots=True)
class Trial:
    """Runs of a model by `forward` in which what its `layers` return is changed.

    `is_last`: whether what the last of them returns is in this worker taken to the end.
    """

    layers: Sequence[torch.nn.Module]
    d_model: int
    forward: Callable[[], torch.Tensor]
    is_last: bool = True
    by_rows: bool = True
    _factors: tuple[float, float] = (0.0, 0.0)  # of the noise, on hidden states and on what comes with them
    _returned: tuple[torch.Tensor, torch.Tensor | None] | None = None  # by the layer that ran last
    _n_ran: int = 0
    _has_pairs: bool = False
    _is_rest_handed_on: bool = True
    _noise: torch.Generator = field(default_factory=torch.Generator)

    def is_sum(self) -> bool:
        """Whether the residual stream is a sum; raises InputError where the layers do not hand it on."""
        plain = self._run(0.0, 0.0)
        if _is_same(self._run(1.0, 0.0), plain):
            raise InputError("a change to what its layers return makes no difference to its output")
        if not self._has_pairs:
            return False
        if self._is_rest_handed_on and _is_same(self._run(-1.0, 1.0), plain):
            return True
        if _is_same(self._run(0.0, 1.0), plain):
            return False
        raise InputError(
            "its layers return two tensors, and its output depends on more than the first or their sum"
        )

    def _run(self, on_hidden: float, on_rest: float) -> torch.Tensor:
        """The model's output, with noise times these factors on what the first and the last layer return.

        That lies on a grid, and so does the noise, so that what is added to one tensor and taken from another
        leaves their sum as it was, bit for bit, in half precision too.
        """
        self._factors, self._returned, self._n_ran = (on_hidden, on_rest), None, 0
        self._noise.manual_seed(0)  # the same in all workers
        handles = []
        for number, layer in enumerate(self.layers):
            handles.append(layer.register_forward_pre_hook(self._entering(number), with_kwargs=True))
            handles.append(layer.register_forward_hook(self._leaving(number)))
        try:
            output = self.forward()
        finally:
            for handle in handles:
                handle.remove()
        if self._n_ran != len(self.layers):
            raise InputError(f"it runs {self._n_ran} of its {len(self.layers)} layers")
        return output

    def _entering(self, number: int) -> Callable[..., None]:
        def check(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if number != self._n_ran:
                raise InputError(f"its layer {number} does not run once, after layer {number - 1}")
            values = (*args, *kwargs.values())
            given = list(_tensors(values))
            self.by_rows &= not any(isinstance(value, list | tuple | dict) for value in values)
            self.by_rows &= all(tensor.shape[:1] == (_N_ROWS,) for tensor in given)
            if self._returned is None:
                return
            hidden, rest = self._returned
            if not any(_is_equal(hidden, one) for one in given):
                raise InputError(f"its layer {number} is not handed what layer {number - 1} returned")
            self._is_rest_handed_on &= rest is not None and any(_is_equal(rest, one) for one in given)

        return check

    def _leaving(self, number: int) -> Callable[..., None]:
        # Of the last layer of a worker that is not the last, what the next worker does with it is not known.
        is_changed = number == 0 if number < len(self.layers) - 1 else self.is_last

        def change(_: torch.nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            self._n_ran += 1
            hidden, rest = parts(output)
            if hidden.numel() != _N_ROWS * self.d_model or hidden.shape[-1] != self.d_model:
                shape = list(hidden.shape)
                raise InputError(f"its layers return {shape} for {_N_ROWS} rows of {self.d_model} numbers")
            self._has_pairs |= rest is not None
            if is_changed:
                tensors = [hidden] if rest is None else [hidden, rest]
                step = _step(tensors)
                points = torch.randint(-_STEPS, _STEPS + 1, hidden.shape, generator=self._noise)
                for tensor, factor in zip(tensors, self._factors, strict=False):
                    on_grid = (tensor.float() / step).round() + factor * points.to(tensor.device)
                    tensor.copy_(on_grid * step)
            self._returned = (hidden.clone(), None if rest is None else rest.clone())

        return change


def _step(tensors: Sequence[torch.Tensor]) -> float:
    """A power of two, of which no number in `tensors` is more than `_STEPS` times."""
    largest = max(float(tensor.abs().max()) for tensor in tensors)
    return 2.0 ** math.ceil(math.log2(largest / _STEPS)) if largest > 0 else 1.0


def _tensors(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _is_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one.float() - other.float()).norm() <= _SAME * other.float().norm())
