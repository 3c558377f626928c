"""From residual streams to latents: capture, SAEs, and the latents whose activation follows the level."""
