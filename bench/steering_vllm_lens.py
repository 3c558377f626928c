"""Requests per second with vllm-lens, beside the same requests in vLLM with its plugin loaded and idle.

What `steering_overhead.py` measures of morfi, of the other tool, in the engine settings that morfi uses.
vllm-lens is no dependency and its plugin loads in every vLLM that can see it, so it is given as a folder:

    pip install --no-deps --target FOLDER vllm-lens zstandard
    PYTHONPATH=FOLDER python bench/steering_vllm_lens.py

Writes bench/results/steering_vllm_lens.md.
"""

from __future__ import annotations

import importlib.metadata
import random
import statistics
import time
from pathlib import Path
from typing import Any

from morfi.checkpoints import resolve
from morfi.device import device_name, is_gpu
from morfi.runs.provenance import versions
from morfi.serve import settings

RESULTS = Path(__file__).resolve().parent / "results" / "steering_vllm_lens.md"
N_REQUESTS, N_PROMPT, N_OUTPUT, LAYER, ROUNDS = 256, 24, 16, 15, 3


def measure() -> dict[str, list[float]]:
    """Requests per second of each side, one figure per round."""
    settings.prepare_process(gpu=is_gpu(), verbose=False)
    if not is_gpu():
        settings.keep_freed_memory()
    import torch
    from vllm import LLM, SamplingParams
    from vllm_lens import SteeringVector

    import morfi.serve.cpu_norm  # noqa: F401 - registers what the settings name

    checkpoint = resolve("smollm2")
    arguments = settings.engine_arguments(
        checkpoint.model_dir,
        dtype=checkpoint.dtype,
        context=256,
        seed=0,
        gpu=is_gpu(),
        overrides={"max_num_seqs": N_REQUESTS},
    )
    del arguments["worker_extension_cls"]
    llm = LLM(**arguments)
    draw, noise = random.Random(0), torch.Generator().manual_seed(0)  # noqa: S311 - no secret
    prompts = [
        {"prompt_token_ids": [draw.randrange(10, 40_000) for _ in range(N_PROMPT)]} for _ in range(N_REQUESTS)
    ]

    def vector(layer: int, scale: float) -> Any:
        return SteeringVector(
            activations=torch.randn(1, 576, generator=noise) * 0.1, layer_indices=[layer], scale=scale
        )

    one = vector(LAYER, 1.0)
    own = [vector(LAYER + place % 4, 0.5 + place / N_REQUESTS) for place in range(N_REQUESTS)]
    sides: dict[str, list[dict[str, Any] | None]] = {
        "plugin loaded, idle": [None] * N_REQUESTS,
        "every request steered, one direction": [{"apply_steering_vectors": [one]}] * N_REQUESTS,
        "every request steered, each its own way": [{"apply_steering_vectors": [each]} for each in own],
        "every token of every request captured": [{"output_residual_stream": [LAYER]}] * N_REQUESTS,
    }
    found: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(ROUNDS + 1):
        for side, extra in sides.items():
            params = [
                SamplingParams(
                    temperature=0,
                    max_tokens=N_OUTPUT,
                    ignore_eos=True,
                    detokenize=False,
                    extra_args=one_extra,
                )
                for one_extra in extra
            ]
            llm.reset_prefix_cache()
            began = time.perf_counter()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            taken = time.perf_counter() - began
            assert all(len(output.outputs[0].token_ids) == N_OUTPUT for output in outputs)
            if number:  # the first round warms up
                found[side].append(N_REQUESTS / taken)
    return found


def table(found: dict[str, list[float]]) -> str:
    """The results as Markdown; ratios are taken round by round."""
    idle = found["plugin loaded, idle"]
    lens = importlib.metadata.version("vllm-lens")
    lines = [
        "# vllm-lens beside vLLM with its plugin idle",
        "",
        f"vllm-lens {lens}; {N_REQUESTS} requests in flight, {N_PROMPT} prompt tokens and {N_OUTPUT} "
        f"answered each, SmolLM2-135M; {device_name()}; {len(idle)} rounds in turn, medians.",
        "",
        "| side | requests/s | of idle | lowest and highest round |",
        "|---|---|---|---|",
    ]
    for side, rates in found.items():
        ratios = [100 * rate / base for rate, base in zip(rates, idle, strict=True)]
        lines.append(
            f"| {side} | {statistics.median(rates):.1f} | {statistics.median(ratios):.1f} % | "
            f"{min(ratios):.1f} - {max(ratios):.1f} % |"
        )
    lines += ["", ", ".join(f"{name} {version}" for name, version in versions().items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the table and writes it."""
    text = table(measure())
    RESULTS.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
