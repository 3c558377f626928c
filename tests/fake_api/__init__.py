"""The HTTP interface of `morfi serve` without an engine: made-up latents and answers, real streams.

`FakeApi` is served by uvicorn in a thread; what it should do wrong is set on it between requests. To look at
the page: `PYTHONPATH=tests python -m fake_api PORT`.
"""
