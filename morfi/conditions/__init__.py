"""The checkpoints of an experiment, and one engine that serves them in turn."""
