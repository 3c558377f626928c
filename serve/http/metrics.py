"""Counters of the server beside vLLM's own metrics, for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

REFUSED = Counter("morfi_refused_requests", "Requests that were not served, by reason.", ["reason"])
STEERED_TOKENS = Counter("morfi_steered_tokens", "Tokens of ended requests that were steered.")
SWAPS = Counter("morfi_checkpoint_swaps", "Checkpoints loaded into the running engine.")
SLOTS_USED = Gauge("morfi_vector_slots_used", "Rows of the workers' table that hold a vector.")
SLOTS = Gauge("morfi_vector_slots", "Rows of the workers' table of vectors.")
IN_FLIGHT = Gauge("morfi_answers_in_flight", "Answers being made.")
VECTORS = Gauge("morfi_vectors_in_flight", "Different directions that requests in flight steer along.")
FOLLOWED = Gauge(
    "morfi_followed_requests", "Steered requests that workers know of, reports not yet taken included."
)
