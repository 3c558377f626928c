"""Requests to an engine and its answers: records and protocols without any engine in them."""
