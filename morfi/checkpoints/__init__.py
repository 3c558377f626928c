"""Checkpoints: what --ckpt names, checked, merged where it is an adapter, and identified by content."""

from morfi.checkpoints.checkpoint import (
    Checkpoint,
    may_be_on_hub,
    model_here,
    resolve,
    resolve_live,
    resolve_unmerged,
)

__all__ = ["Checkpoint", "may_be_on_hub", "model_here", "resolve", "resolve_live", "resolve_unmerged"]
