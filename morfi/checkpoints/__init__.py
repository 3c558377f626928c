"""Checkpoints: what --ckpt names, checked, merged where it is an adapter, and identified by content."""

from morfi.checkpoints.checkpoint import Checkpoint, resolve, resolve_live, resolve_unmerged

__all__ = ["Checkpoint", "resolve", "resolve_live", "resolve_unmerged"]
