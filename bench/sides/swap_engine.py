"""One side of swap.py: an engine started on a checkpoint, then adapters loaded into it in turn."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from typing import Any

from morfi.checkpoints import resolve, resolve_unmerged
from morfi.serve.engine import Engine, start_engine


def logits(engine: Engine, n_prompts: int = 8, n_top: int = 20) -> list[Any]:
    """The highest logits at every place of some random prompts and of the tokens that follow them."""
    from vllm import SamplingParams

    draw = random.Random(0)  # noqa: S311 - no secret
    prompts = [
        {"prompt_token_ids": [draw.randrange(10, 40_000) for _ in range(20 + 9 * n)]}
        for n in range(n_prompts)
    ]
    engine.reset_prefix_cache()
    params = SamplingParams(
        temperature=0, max_tokens=8, logprobs=n_top, prompt_logprobs=n_top, detokenize=False
    )
    outputs: Any = engine._llm.generate(prompts, params, use_tqdm=False)
    return [
        [[token, entry.logprob] for token, entry in place.items()]
        for output in outputs
        for place in (*output.prompt_logprobs[1:], *output.outputs[0].logprobs)
    ]


def main() -> None:
    """Reads {"ckpt", "base", "adapters", "dtype", "swaps"}; writes seconds and logits.

    Without adapters it starts on "ckpt"; with them on "base", and loads each in turn, "swaps" times in all,
    after one turn that does not count.
    """
    job = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 1)
    in_process = os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    base = resolve(job["base"], dtype=job["dtype"])
    loads = [resolve_unmerged(path, base=base) for path in job["adapters"]]
    checkpoint = base if loads else resolve(job["ckpt"], base=job["base"], dtype=job["dtype"])
    if in_process:
        import vllm  # noqa: F401 - paid once by a process, whatever it serves
    overrides = {"max_logprobs": 20, "logprobs_mode": "raw_logits"}
    started = time.perf_counter()
    with start_engine(checkpoint, context=1024, seed=0, overrides=overrides) as engine:
        found: dict[str, Any] = {"start_s": time.perf_counter() - started, "swaps_s": [], "logits": []}
        if not loads:
            found["logits"] = [logits(engine)]
        for load in loads:
            engine.load_checkpoint(load)
            found["logits"].append(logits(engine))
        for number in range(job["swaps"] if loads else 0):
            begun = time.perf_counter()
            engine.load_checkpoint(loads[number % len(loads)])
            found["swaps_s"].append(time.perf_counter() - begun)
    os.write(out, json.dumps(found).encode())


if __name__ == "__main__":
    main()
