"""What requests may be steered along: latents of SAEs, and vectors, by the names that clients use."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.checkpoints.presets import PRESETS
from morfi.engine.directions import DecoderRows, Direction, SaeLatents
from morfi.engine.operations import OPERATIONS
from morfi.engine.residual_stream import ResidualStream
from morfi.engine.steering import Latent as SaeLatent
from morfi.errors import InputError
from morfi.serve.http.gate import Refused
from morfi.serve.http.wire import Latent, Steering, Vector

if TYPE_CHECKING:
    import torch

    from morfi.latents.sae import Sae
    from morfi.serve.plugin.admission import Admission

N_SHOWN = 10  # neighbours of a latent
# Which parts of a sequence positions reach, so that what acts at different ones is not added up.
_PARTS = ("system", "user", "assistant", "rest", "last", "generated")
_REACHED: Mapping[str, tuple[str, ...]] = {
    "all": _PARTS,
    "prompt": _PARTS[:-1],
    "last_prompt": ("last",),
    "generated": ("generated",),
    "system": ("system", "last"),
    "user": ("user", "last"),
    "assistant": ("assistant", "last", "generated"),
}


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A latent with its decoder row's cosine to another's."""

    latent: int
    cosine: float


@dataclass(eq=False)
class ServedSae:
    """An SAE under the `name` that clients use; `layer` is None where nothing says which one it reads."""

    name: str
    sae: Sae
    sha256: str
    layer: int | None

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.sae.encoder.d_sae

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations along its latents."""
        has_own = self.sae.has_own_latents
        return tuple(one.name for one in OPERATIONS.values() if has_own or not one.needs_latent)

    def directions(self) -> SaeLatents | DecoderRows:
        """The latents as directions to steer along."""
        return self.sae.directions() if self.sae.has_own_latents else self.sae.decoder_rows()

    def row_norm(self, latent: int) -> float:
        """The length of a latent's decoder row."""
        return float(self._row_norms[latent])

    def unit(self, latent: int) -> torch.Tensor:
        """A latent's decoder row at length 1, float64 [d_model]; a row of 0 stays one."""
        row = self.sae.W_dec[latent].double()
        made: torch.Tensor = row / row.norm().clamp_min(1e-30)
        return made

    @functools.cached_property
    def _row_norms(self) -> Any:
        """float32 [d_sae]."""
        return self.sae.W_dec.norm(dim=1)

    def neighbours(self, latent: int) -> list[Neighbour]:
        """The latents whose decoder rows have the largest cosine with this one's, itself left out."""
        W_dec = self.sae.W_dec
        lengths = self._row_norms.clamp_min(1e-12)
        cosines = (W_dec @ W_dec[latent]) / (lengths * lengths[latent])
        cosines[latent] = -math.inf
        best = cosines.topk(min(N_SHOWN, len(cosines) - 1))
        return [Neighbour(*pair) for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)]


def name_of(source: str) -> str:
    """The name of an SAE for clients: RELEASE:ID or a preset as it is, a folder without where it lies."""
    return Path(source).resolve().name if source not in PRESETS and Path(source).is_dir() else source


@dataclass(frozen=True, eq=False, slots=True)
class ServedVector:
    """A vector under the `name` that clients use: its direction has length 1, `length` is what it had."""

    name: str
    sha256: str  # of the numbers as they were given
    length: float
    direction: Direction

    @classmethod
    def of(cls, name: str, given: Direction) -> ServedVector:
        """The vector of a direction as it was given."""
        length = float(given.vector.double().norm())
        return cls(name, given.sha256, length, Direction((given.vector.double() / length).float()))


@dataclass(frozen=True, eq=False, slots=True)
class Along:
    """A direction that a request names; `engine` is the engine's name of it.

    A value of 1 of its latent moves the stream x by `length` along `unit`, float64 [d_model] of length 1, and
    with `norm_rescaled` by |x| / sqrt(d_model) of that.
    """

    layer: int
    engine: SaeLatent | str
    unit: torch.Tensor
    length: float
    sae: str | None = None  # of a latent: the SAE's name, with the default filled in
    norm_rescaled: bool = False

    def share(self, norm: float) -> float:
        """How far a value of 1 of its latent moves a stream of this norm, in such norms."""
        return self.length / (math.sqrt(len(self.unit)) if self.norm_rescaled else norm)


class Steerable:
    """The SAEs and vectors of a server, registered with its engine; vectors may come and go.

    `on_gone` is called with the engine's name of a vector that was released while a request held it, once
    none does any more.
    """

    def __init__(
        self,
        admission: Admission,
        saes: Iterable[ServedSae] = (),
        on_gone: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._admission = admission
        self.on_gone = on_gone
        self.saes: dict[str, ServedSae] = {}
        self.vectors: dict[str, ServedVector] = {}
        self._in_engine: dict[str, str] = {}  # by the SAE's name
        for one in saes:
            if one.layer is not None:
                self._check_layer(one.layer, f"SAE {one.name}")
            self._in_engine[one.name] = _registered(admission, one.directions(), f"SAE {one.name}")
            self.saes[one.name] = one

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self._admission.n_layers

    @property
    def d_model(self) -> int:
        """Width of the model's residual stream."""
        return self._admission.d_model

    @property
    def vector_operations(self) -> tuple[str, ...]:
        """The operations along vectors, which have no activation."""
        return tuple(one.name for one in OPERATIONS.values() if not one.needs_latent)

    def add_vectors(self, given: Mapping[str, Direction]) -> list[ServedVector]:
        """Takes vectors in, all or none; raises InputError for a wrong width, and a name that is taken."""
        for name in given:
            if name in self.vectors:
                raise InputError(
                    f'vector "{name}": the name is taken; release that one first, or give another'
                )
        made = [ServedVector.of(name, direction) for name, direction in given.items()]
        for number, one in enumerate(made):
            try:
                _registered(self._admission, one.direction, f'vector "{one.name}"')
            except InputError:
                for before in made[:number]:
                    self._admission.registry.release(before.direction.sha256)
                raise
        self.vectors |= {one.name: one for one in made}
        return made

    def release_vector(self, name: str) -> str | None:
        """Lets a vector go; the engine's name of it, where nobody holds it any more, and None otherwise."""
        return self._release(self.vectors.pop(name).direction.sha256)

    @contextlib.contextmanager
    def held(self, found: Iterable[Along]) -> Iterator[None]:
        """Keeps the vectors among these directions in the engine while the block lasts, released or not."""
        held = [one.engine for one in found if isinstance(one.engine, str)]
        for name in held:
            self._admission.registry.hold(name)
        try:
            yield
        finally:
            for name in held:
                if (gone := self._release(name)) is not None:
                    self.on_gone(gone)

    def _release(self, name: str) -> str | None:
        self._admission.registry.release(name)
        return None if name in self._admission.registry else name

    def sae(self, name: str | None) -> ServedSae:
        """The SAE of this name, or the only one; raises Refused (422) where that is not one."""
        if name is None:
            if len(self.saes) == 1:
                return next(iter(self.saes.values()))
            known = ", ".join(self.saes)
            message = f"there are several SAEs; name one in sae: {known}" if known else "no SAE is served"
            raise _unfit("sae", message, "sae")
        if name not in self.saes:
            message = f"no SAE of this name is served; there are: {', '.join(self.saes) or 'none'}"
            raise _unfit("sae", message, "sae")
        return self.saes[name]

    def read_after(self, name: str | None, given: int | None) -> tuple[ServedSae, int]:
        """The SAE and the layer after which it reads, `given` where it does not say; raises Refused (422)."""
        sae = self.sae(name)
        if sae.layer is None and given is None:
            raise _unfit("layer", f"{sae.name} does not say which layer it reads; give layer", "layer")
        if sae.layer is not None and given not in (None, sae.layer):
            message = f"layer {given}: {sae.name} reads after layer {sae.layer}, and nowhere else"
            raise _unfit("layer", message, "layer")
        layer = given if sae.layer is None else sae.layer
        assert layer is not None
        self._check_steered(layer, sae.name, "layer")
        return sae, layer

    def find(self, one: Latent | Vector, layer: int | None) -> Along:
        """The direction that is named, steered after its own layer or `layer`; raises Refused (422) for none.

        Nothing is said of the size of the change.
        """
        param = "steering.latents" if isinstance(one, Latent) else "steering.vectors"
        try:
            along = self._latent(one, layer) if isinstance(one, Latent) else self._vector(one, layer)
        except Refused as refused:
            raise _unfit(refused.reason, f"{one.label}: {refused}", param) from refused
        self._check_steered(along.layer, one.label, param)
        return along

    def _latent(self, one: Latent, default: int | None) -> Along:
        sae = self.sae(one.sae)
        if one.id >= sae.d_sae:
            raise _unfit("latent", f"there are the latents 0 to {sae.d_sae - 1} of {sae.name}")
        length = sae.row_norm(one.id)
        if not length:
            raise _unfit("latent", "its decoder row is empty; it leads nowhere")
        _check_operation(one, sae.operations, "this SAE")
        _, layer = self.read_after(sae.name, one.layer if one.layer is not None else default)
        own = SaeLatent(self._in_engine[sae.name], one.id)
        return Along(layer, own, sae.unit(one.id), length, sae.name, sae.sae.norm_rescaled)

    def _vector(self, one: Vector, default: int | None) -> Along:
        found = self.vectors.get(one.vector)
        if found is None:
            known = ", ".join(self.vectors) or "none"
            raise _unfit("vector", f"there is no such vector; there are: {known[:500]}")
        _check_operation(one, self.vector_operations, "a vector")
        layer = one.layer if one.layer is not None else default
        if layer is None:
            raise _unfit("layer", "give the layer after which it is steered")
        direction = found.direction
        return Along(layer, direction.sha256, direction.vector.double(), 1.0)

    def key_of(self, one: Latent | Vector) -> str:
        """A name for what is steered along, the same for the same direction, or what there is none of."""
        if isinstance(one, Vector):
            return one.vector
        only = next(iter(self.saes)) if len(self.saes) == 1 else ""
        return f"{one.sae or only}/{one.id}"

    def _check_steered(self, layer: int, what: str, param: str) -> None:
        try:
            self._check_layer(layer, what)
        except InputError as error:
            raise _unfit("layer", str(error), param) from error

    def _check_layer(self, layer: int, what: str) -> None:
        ResidualStream("the model", self.n_layers, self.d_model).check_layer(layer, what)


def _registered(admission: Admission, what: Direction | SaeLatents | DecoderRows, name: str) -> str:
    try:
        return admission.register(what)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _check_operation(one: Latent | Vector, possible: Sequence[str], what: str) -> None:
    if one.operation not in possible:
        raise _unfit(
            "operation",
            f'"{one.operation}" cannot be done with {what}; {", ".join(possible)} can',
        )


def _unfit(reason: str, message: str, param: str | None = None) -> Refused:
    return Refused(422, reason, message, param=param)


def size_of(steering: Steering, found: Sequence[Along], norms: Mapping[int, float]) -> tuple[float, int]:
    """How far the directions together move the stream at most, in median norms of a layer, and which layer.

    `found` are those of the steering's entries, in order; of one latent there is one value, however often it
    is given. What acts after different layers, or at different parts of the sequence, is not added up.
    """
    import torch

    largest, where = 0.0, found[0].layer
    for layer in sorted({along.layer for along in found}):
        for part in _PARTS:
            total = torch.zeros_like(found[0].unit)
            values = set()
            for one, along in zip(steering.entries, found, strict=True):
                operation, amount = OPERATIONS[one.operation], one.put_in
                if along.layer != layer or part not in _REACHED[steering.positions_of(one)]:
                    continue
                if operation.is_sum:
                    total += amount * along.unit
                elif operation.puts_in and (along.engine, amount) not in values:
                    values.add((along.engine, amount))
                    total += amount * along.share(norms[layer]) * along.unit
            size = float(total.norm())
            if math.isnan(size) or size > largest:  # sums of what is too large are NaN
                largest, where = math.inf if math.isnan(size) else size, layer
    return largest, where
