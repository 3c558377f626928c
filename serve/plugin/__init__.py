"""Steering and capture within vLLM: its functions wrapped, and the operation on the residual stream."""
