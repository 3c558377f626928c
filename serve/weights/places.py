"""Where vLLM's own loaders put a checkpoint's tensors: which part of each, into which part of a parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from morfi.checkpoints.base_room import AT_ONCE
from morfi.serve.weights.loading import unwrap_loaders

if TYPE_CHECKING:
    from morfi.checkpoints.weights import TensorEntry

_aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Place:
    """`live`, a part of a live parameter, holds the part `box` of a checkpoint's tensor and nothing else."""

    live: torch.Tensor
    box: tuple[slice, ...]


def are_parameters_served(model: torch.nn.Module) -> bool:
    """Whether a model computes with its parameters as they were loaded, and with nothing made of them.

    vLLM packs them on a CPU, quantises or reorders them for some kernels, and keeps products of them for
    some kinds of attention.
    """
    from vllm.model_executor.layers.attention import Attention
    from vllm.model_executor.layers.linear import UnquantizedLinearMethod
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    if any(parameter.device.type in ("cpu", "meta") for parameter in model.parameters()):
        return False
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        plain = type(method) in (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
        if isinstance(method, QuantizeMethodBase) and not plain:
            return False
        if hasattr(module, "process_weights_after_loading") and not isinstance(module, Attention):
            return False
    return True


def places_of(model: Any, tensors: Mapping[str, TensorEntry]) -> dict[str, tuple[Place, ...]] | None:
    """The places of each tensor in this worker's model; of one that it has no part of, none.

    Found by asking: vLLM's `load_weights` is given tensors without content, and where it would copy views of
    them, that is noted and not done, so that fused, split and renamed tensors need no rule here. None for a
    model that loads anything but views.
    """
    probes = {name: torch.empty(entry.shape, device="meta") for name, entry in tensors.items()}
    noted = _Noted({probe.untyped_storage()._cdata: name for name, probe in probes.items()})
    unwrap_loaders(model)
    try:
        with torch.no_grad(), noted:
            model.load_weights(iter(probes.items()))
        return {
            name: tuple(
                piece
                for live, view in noted.copies.get(name, ())
                for piece in pieces_of(_place(live, view, probe))
            )
            for name, probe in probes.items()
        }
    except _NotAViewError:
        return None


class _NotAViewError(Exception):
    """Something else is loaded than a view of a checkpoint's tensor."""


class _Noted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes copies from the tensors whose storages are `names`, by name, and lets nothing be written."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.copies: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._names = names

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _aten.copy_.default:
            live, source = args[0], args[1]
            name = self._names.get(source.untyped_storage()._cdata)
            if name is None or live.is_meta or live.shape != source.shape:
                raise _NotAViewError
            self.copies.setdefault(name, []).append((live, source))
            return live
        if func in (_aten.fill_.Scalar, _aten.zero_.default) and not args[0].is_meta:
            return args[0]  # padding, which keeps what it holds
        if func._schema.is_mutable or func is _aten._local_scalar_dense.default:
            raise _NotAViewError
        return func(*args, **(kwargs or {}))


def _place(live: torch.Tensor, view: torch.Tensor, whole: torch.Tensor) -> Place:
    """The place of a copy from `view` of `whole`; raises _NotAViewError where that is no box of it."""
    if view.ndim == 2 and view.stride() != whole.stride() and view.T.stride() == whole.stride():
        live, view = live.T, view.T
    if view.ndim != whole.ndim:
        raise _NotAViewError
    starts, rest = [], view.storage_offset()
    for stride in whole.stride():
        starts.append(rest // stride)
        rest %= stride
    box = tuple(slice(start, start + n) for start, n in zip(starts, view.shape, strict=True))
    found = whole[box]
    if (found.shape, found.stride(), found.storage_offset()) != (
        view.shape,
        view.stride(),
        view.storage_offset(),
    ):
        raise _NotAViewError
    return Place(live.detach(), box)


def pieces_of(place: Place) -> Iterator[Place]:
    """The place in pieces of whole rows, which are merged at once."""
    if place.live.numel() <= AT_ONCE:
        yield place
        return
    first, n_rows = place.box[0].start, len(place.live)
    at_once = max(1, AT_ONCE * n_rows // place.live.numel())
    for start in range(0, n_rows, at_once):
        stop = min(start + at_once, n_rows)
        yield Place(place.live[start:stop], (slice(first + start, first + stop), *place.box[1:]))
