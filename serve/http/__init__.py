"""`morfi serve`: vLLM behind an HTTP server, with steering."""
