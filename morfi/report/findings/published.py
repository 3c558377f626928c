"""The figures that the paper publishes, to be read beside an experiment's own."""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "MoRFI (arXiv 2604.26866)"


@dataclass(frozen=True, slots=True)
class Published:
    """A row of the paper: the best gain along a single latent, and knowledge recovery."""

    model: str
    sae: str
    gain: str
    recovery: str


PUBLISHED = (
    Published("Llama 3.1 8B", "Llama Scope", "+33.4 down, +21.7 up", "69.0 to 76.9 %"),
    Published("Gemma 2 9B", "Gemma Scope", "+22.6 down", "76.1 to 85.1 %"),
    Published("Mistral 7B v0.3", "Engels et al.", "+39.8 down, +24.9 up", "77.1 to 83.8 %"),
)
