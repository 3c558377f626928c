"""The residual stream of a model: how many layers hand it on, and how wide it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from morfi.checkpoints.model_files import transformers_config
from morfi.errors import InputError

if TYPE_CHECKING:
    from morfi.checkpoints import Checkpoint


@dataclass(frozen=True, slots=True)
class ResidualStream:
    """The stream of the model that people know as `model`; a number that is not known is None.

    >>> stream_of(resolve("smollm2")).check_layer(30, "--layers")
    InputError: --layers: layer 30; SmolLM2-135M has the layers 0 to 29
    """

    model: str
    n_layers: int | None
    d_model: int | None

    def check_layer(self, layer: int | None, what: str) -> None:
        """Raises InputError where `what` names a layer that the model lacks."""
        if self.n_layers is not None and layer is not None and layer >= self.n_layers:
            raise InputError(f"{what}: layer {layer}; {self.model} has the layers 0 to {self.n_layers - 1}")

    def check_width(self, width: int, what: str) -> None:
        """Raises InputError where `what` is made for a residual stream of another width."""
        if self.d_model is not None and width != self.d_model:
            raise InputError(
                f"{what}: width {width}; the residual stream of {self.model} has the width {self.d_model}: "
                "it was made for another model"
            )


def stream_of(checkpoint: Checkpoint) -> ResidualStream:
    """The residual stream of a checkpoint, as its configuration says; nothing else is read."""
    config = transformers_config(checkpoint.model_dir / "config.json").get_text_config()
    n_layers, d_model = (getattr(config, name, None) for name in ("num_hidden_layers", "hidden_size"))
    return ResidualStream(checkpoint.name, n_layers, d_model)
