"""The weights of a live engine: what vLLM loaded, and what takes their place."""
