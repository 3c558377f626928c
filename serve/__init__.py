"""The vLLM engine behind morfi; nothing outside this package imports vllm."""
