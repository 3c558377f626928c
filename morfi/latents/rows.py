"""Residual streams of one condition, in memory or read from disk a chunk of questions at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from morfi.errors import InputError
from morfi.kernels.encoder import Encoder, normalization, prepare

CHUNK = 2048  # questions at a time


class Rows(Protocol):
    """Residual streams of one condition, [n_questions, d_model]: a tensor, or what reads its rows from disk.

    Rows are asked for as slices, a chunk at a time and again for every tile of latents, so that memory need
    not hold all conditions.
    """

    @property
    def shape(self) -> Sequence[int]:
        """n_questions and d_model."""

    def __getitem__(self, rows: slice, /) -> torch.Tensor:
        """These rows, of any float dtype, on any device."""


class ArrayRows:
    """Residual streams in a NumPy array or memory map, [n_questions, d_model], of any float type of it."""

    def __init__(self, x: np.ndarray) -> None:
        self._x = x
        self.shape = x.shape

    def __getitem__(self, rows: slice, /) -> torch.Tensor:
        """A copy of these rows."""
        chunk = self._x[rows]
        return torch.tensor(chunk.astype(chunk.dtype.newbyteorder("="), order="C"))


def rows_of(x: Rows | np.ndarray, where: str, device: str | torch.device) -> Rows:
    """What `find_trends` reads: a tensor on the device, or rows a chunk at a time.

    Raises InputError for anything but a tensor, a float array, or `Rows`.
    """
    if isinstance(x, torch.Tensor):
        return x.to(device)
    if isinstance(x, np.ndarray):
        if x.dtype.kind != "f" or x.dtype.itemsize > 8:
            raise InputError(f"{where} holds {x.dtype}; activations are floats of 16, 32 or 64 bits")
        return ArrayRows(x)
    if not hasattr(x, "shape"):
        raise InputError(
            f"{where} is of the type {type(x).__name__}; give a tensor or array [n_questions, d_model]"
        )
    return x


def check_rows(x: Rows, where: str, n_questions: int, encoder: Encoder, most: float) -> None:
    """Raises InputError unless these are floats [n_questions, d_model], and finite as the SAE reads them.

    `most` is the largest norm that a row may have then.
    """
    if len(x.shape) != 2 or x.shape[1] != encoder.d_model:
        raise InputError(
            f"{where} has the shape {tuple(x.shape)}; the SAE reads [n_questions, {encoder.d_model}]"
        )
    if x.shape[0] != n_questions or not n_questions:
        raise InputError(f"{where} has {x.shape[0]} questions, the first condition {n_questions}")
    for rows in chunks(n_questions, CHUNK):
        chunk = x[rows]
        if not chunk.is_floating_point():
            raise InputError(f"{where} holds {chunk.dtype}; activations are floats")
        if tuple(chunk.shape) != (min(rows.stop, n_questions) - rows.start, encoder.d_model):
            raise InputError(f"{where} gives {tuple(chunk.shape)} for questions {rows.start} to {rows.stop}")
        if (row := _first_not(chunk.isfinite())) is not None:
            question = rows.start + row
            raise InputError(f"{where} holds NaN or infinity, first in question {question}; capture it again")
        if found := _unreadable(chunk.to(encoder.W_enc.device), encoder, most):
            row, why = found
            raise InputError(f"{where} cannot be encoded, first of question {rows.start + row}: {why}")


def _unreadable(rows: torch.Tensor, encoder: Encoder, most: float) -> tuple[int, str] | None:
    """The first of the rows [n, d_model] that the SAE cannot read, and why."""
    _, scale = normalization(rows.float(), encoder)
    if isinstance(scale, torch.Tensor) and (row := _first_not(scale.isfinite() & (scale > 0))) is not None:
        return row, f"{encoder.normalization} cannot scale it: it is 0, or too large"
    prepared = prepare(rows, encoder)
    if (row := _first_not(prepared.isfinite())) is not None:
        return row, f"{encoder.W_enc.dtype} of the SAE cannot hold it"
    if (row := _first_not(prepared.double().norm(dim=1, keepdim=True) <= most)) is not None:
        return row, "it, or the weights of the SAE, are too large for sums in float32"
    return None


def _first_not(good: torch.Tensor) -> int | None:
    """The first of the rows of `good` [n, m] that is not true throughout."""
    rows = good.all(1)
    return None if bool(rows.all()) else int((~rows).nonzero()[0])


def chunks(n: int, size: int) -> list[slice]:
    """The questions 0 to n - 1 in slices of `size`."""
    return [slice(start, start + size) for start in range(0, n, size)]
