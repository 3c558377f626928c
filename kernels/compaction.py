"""Pre-activations to their few non-zeros on a GPU: what both ways to encode have in common.

Whatever multiplied, a launch stores value and place of each activation that it keeps where an atomic
counter says, in any order. They are sorted by their places afterwards: the result is the same in every
run. If more was kept than there was room for, it is done again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from morfi.kernels.encoder import Encoder, Nonzeros

SHARE = 1 / 32  # of the activations that there is room for at first


@triton.jit
def activated(
    p,
    rows,
    columns,
    is_row,
    is_column,
    scale,
    shift,
    gate,
    floor,
    limits,
    IS_GATED: tl.constexpr,
    HAS_LIMITS: tl.constexpr,
):
    """The activations of a block of products, and which of them are kept."""
    z = p
    if IS_GATED:
        z = z * tl.load(scale + columns, mask=is_column, other=0.0)[None, :]
    z += tl.load(shift + columns, mask=is_column, other=0.0)[None, :]
    keep = is_row[:, None] & is_column[None, :]
    keep &= z > tl.load(floor + columns, mask=is_column, other=0.0)[None, :]
    if IS_GATED:
        keep &= p + tl.load(gate + columns, mask=is_column, other=0.0)[None, :] > 0
    if HAS_LIMITS:
        keep &= z >= tl.load(limits + rows, mask=is_row, other=0.0)[:, None]
    return z, keep


@dataclass(frozen=True, eq=False, slots=True)
class Epilogue:
    """After the product p, float32 [T]: z = p scale + shift is kept above `floor` and `limits` [n]."""

    shift: torch.Tensor
    floor: torch.Tensor
    scale: torch.Tensor | None = None  # of "gated", with `gate`: kept only where p + gate > 0
    gate: torch.Tensor | None = None
    limits: torch.Tensor | None = None

    @property
    def pointers(self) -> dict[str, torch.Tensor]:
        """The arguments that `activated` loads from; one that is not read may be any."""
        optional = {"scale": self.scale, "gate": self.gate, "limits": self.limits}
        given = {name: self.shift if one is None else one for name, one in optional.items()}
        return {"shift": self.shift, "floor": self.floor} | given

    @property
    def flags(self) -> dict[str, bool]:
        """The constants that it is compiled with."""
        return {"IS_GATED": self.gate is not None, "HAS_LIMITS": self.limits is not None}


def epilogue_of(encoder: Encoder, latents: slice, limits: torch.Tensor | None) -> Epilogue:
    """The epilogue of these latents; `limits` are those of `morfi.kernels.encode.row_limits`."""
    shift = encoder.b_enc[latents].float()
    if encoder.activation == "gated":
        assert encoder.r_mag is not None
        assert encoder.b_mag is not None
        scale, bias = encoder.r_mag[latents].float().exp(), encoder.b_mag[latents].float()
        return Epilogue(bias, torch.zeros_like(bias), scale, gate=shift)
    if encoder.activation == "jumprelu":
        assert encoder.threshold is not None
        return Epilogue(shift, encoder.threshold[latents].float().clamp_min(0))
    return Epilogue(shift, torch.zeros_like(shift), limits=None if limits is None else limits.contiguous())


@dataclass(frozen=True, eq=False, slots=True)
class Kept:
    """Room for the activations that are kept of [n, T]; `n_kept` may come to be more than fit."""

    places: torch.Tensor  # int32 [capacity]: latent * n + question
    values: torch.Tensor  # float32 [capacity]
    n_kept: torch.Tensor  # int32 [1]

    def ordered(self, found: int, n: int, n_latents: int) -> Nonzeros:
        """The first `found`, by latent, then question: places are unique, so any sort gives the same."""
        places, order = self.places[:found].sort()
        bounds = torch.arange(n_latents + 1, dtype=torch.int32, device=places.device) * n
        starts = torch.searchsorted(places, bounds)
        return Nonzeros(starts, (places % max(1, n)).long(), self.values[:found][order])


# Multiplies prepared [n, d_model] by weights [d_model, T], and puts what an epilogue keeps where there is
# room.
Launch = Callable[[torch.Tensor, torch.Tensor, Epilogue, Kept], None]


def start_tile(
    launch: Launch,
    prepared: torch.Tensor,
    encoder: Encoder,
    latents: slice,
    limits: torch.Tensor | None = None,
    share: float = SHARE,
) -> Callable[[], Nonzeros]:
    """The result of `morfi.kernels.encode.start_tile`, by one way or the other."""
    n, n_latents = len(prepared), latents.stop - latents.start
    if n * n_latents >= 2**31:
        raise ValueError(f"{n} questions x {n_latents} latents are too many at once: places are int32")
    weights, epilogue = encoder.W_enc[:, latents], epilogue_of(encoder, latents, limits)

    def keep(capacity: int) -> tuple[Kept, Callable[[], int]]:
        device = prepared.device
        kept = Kept(
            torch.empty(capacity, dtype=torch.int32, device=device),
            torch.empty(capacity, device=device),
            torch.zeros(1, dtype=torch.int32, device=device),
        )
        if n * n_latents:
            launch(prepared, weights, epilogue, kept)
        return kept, _copied(kept.n_kept)

    first, count = keep(max(1024, int(n * n_latents * share)))

    def end() -> Nonzeros:
        found = count()
        kept = first if found <= len(first.values) else keep(found)[0]
        return kept.ordered(found, n, n_latents)

    return end


def _copied(number: torch.Tensor) -> Callable[[], int]:
    """Waits for a number, once what was queued before has computed it, and for nothing queued behind."""
    on_host = number.to("cpu", non_blocking=True)
    if number.device.type == "cpu":  # in the interpreter
        return lambda: int(on_host)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(number.device))

    def wait() -> int:
        copied.synchronize()
        return int(on_host)

    return wait
