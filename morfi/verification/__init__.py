"""Verification: whether an engine answers, steers, captures and swaps as transformers says it must."""
