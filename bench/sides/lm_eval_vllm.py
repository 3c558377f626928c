"""One side of eval_throughput.py: lm-eval's vLLM backend on the same prompts as a YAML task.

Runs in an environment of its own that holds lm-eval (bench/README.md). Starting the model is not counted.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
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


def main() -> None:
    """Reads {"model", "prompts", "answers", "max_tokens"}; writes texts and seconds."""
    job = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 1)
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
        model = VLLM(pretrained=job["model"], batch_size="auto")
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
