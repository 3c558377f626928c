"""The store of everything measured: one DuckDB file of facts that are only ever added."""

from morfi.store.store import Store

__all__ = ["Store"]
