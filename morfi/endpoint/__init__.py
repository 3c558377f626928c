"""An engine behind a URL: any OpenAI-compatible server, for `morfi eval --endpoint`."""
