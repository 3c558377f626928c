"""Two sides of eval_throughput.py: vLLM without morfi, as it comes or tuned, stopping at a newline string."""

from __future__ import annotations

import json
import os
import sys
import time


def main() -> None:
    """Reads {"model", "prompts", "max_tokens", "settings", "all_cores"}; writes texts and seconds."""
    job = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 1)
    os.environ["VLLM_PLUGINS"] = ""
    if job["all_cores"]:
        os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"  # vLLM leaves one idle
    from vllm import LLM, SamplingParams

    llm = LLM(model=job["model"], **job["settings"])
    params = SamplingParams(temperature=0.0, max_tokens=job["max_tokens"], stop=["\n"])
    started = time.perf_counter()
    answers = llm.generate(job["prompts"], params, use_tqdm=False)
    seconds = time.perf_counter() - started
    found = {"generate_s": seconds, "texts": [answer.outputs[0].text for answer in answers]}
    os.write(out, json.dumps(found).encode())


if __name__ == "__main__":
    main()
