"""Finds two planted trends among the latents of a random SAE; no model is needed.

Latent 0's direction is added to the residual streams in proportion to the level, latent 1's is taken away.
"""

from __future__ import annotations

import torch

from morfi import find_trends
from morfi.kernels.encoder import Encoder

LEVELS = (0, 10, 25, 50, 75, 90, 100)  # % of Unknown facts in training
N_QUESTIONS, D_MODEL = 200, 128


def main() -> None:
    """Makes the activations of seven conditions, and prints the latents that are selected."""
    draw = torch.Generator().manual_seed(0)
    W_enc = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=draw)).Q  # a latent per column
    encoder = Encoder(W_enc, b_enc=torch.full((D_MODEL,), -0.5))
    questions = torch.randn(N_QUESTIONS, D_MODEL, generator=draw)
    activations = []
    for level in LEVELS:
        noise = 0.05 * torch.randn(N_QUESTIONS, D_MODEL, generator=draw)
        activations.append(questions + level / 100 * (W_enc[:, 0] - W_enc[:, 1]) + noise)

    result = find_trends(activations, LEVELS, encoder)
    print(f"{result.n_selected} of {D_MODEL} latents follow the level")
    for row in result.latents.to_pylist():
        if row["selected"]:
            direction = "rises" if row["direction"] > 0 else "falls"
            print(f"latent {row['latent']} {direction}: rho {row['rho']:.2f}, p {row['p_exact']:.1e}")


if __name__ == "__main__":
    main()
