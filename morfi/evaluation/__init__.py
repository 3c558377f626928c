"""Closed-book accuracy: of one checkpoint, of what a model knows, and of all checkpoints of a series."""
