"""Series of checkpoints, and one engine that serves them in turn."""
