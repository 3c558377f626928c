"""By how much a merge on another device may differ from the CPU's, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from morfi.checkpoints.lora import Merge, matrices

if TYPE_CHECKING:
    import torch

_U = 2.0**-24  # half the distance of two float32 numbers near 1


def allowed_difference(name: str, expected: torch.Tensor, merge: Merge) -> torch.Tensor:
    """For each element of the merged tensor `name`, `expected` on the CPU, how far another device's may be.

    Only a product B A depends on the device: its r terms are summed in float32 in another order, and each sum
    lies within gamma = r u / (1 - r u) of |B| |A| of the exact one (Higham, Accuracy and Stability of
    Numerical Algorithms, section 3.1; u = 2^-24). Scaling and adding the base round once each, and in a
    shorter serving dtype a value beside a tie may end one step further. Everything else is exact: nothing
    is allowed there. DoRA, whose lengths are sums too, is not covered.
    """
    import torch

    edit = merge.edits[name]
    value = expected.float().abs()
    if edit.lora is None:
        return torch.zeros_like(value)
    a, b = (merge.adapter.weights.tensor(part).float().abs() for part in matrices(edit.lora))
    size = (b @ a) * abs(edit.lora.scaling)
    if edit.flipped:
        size = size.T
    gamma = a.shape[0] * _U / (1 - a.shape[0] * _U)
    bound = 2 * (gamma + 2 * _U) * size + 4 * _U * value
    if expected.dtype == torch.float32:
        return bound
    step = torch.finfo(expected.dtype)
    return bound + step.eps * (value + bound) + step.smallest_normal * step.eps
