"""One side of eval_throughput.py: vLLM as it comes, stopping at a newline string.

Only its share of the memory is lowered: it wants 92 % of a NUMA node free, and does not start otherwise.
"""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    """Reads {"model", "prompts", "max_tokens"}; writes texts and seconds."""
    job = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 1)
    from vllm import LLM, SamplingParams

    llm = LLM(model=job["model"], gpu_memory_utilization=0.5)
    params = SamplingParams(temperature=0.0, max_tokens=job["max_tokens"], stop=["\n"])
    started = time.perf_counter()
    answers = llm.generate(job["prompts"], params, use_tqdm=False)
    seconds = time.perf_counter() - started
    found = {"generate_s": seconds, "texts": [answer.outputs[0].text for answer in answers]}
    os.write(out, json.dumps(found).encode())


if __name__ == "__main__":
    main()
