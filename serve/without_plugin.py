"""vLLM without morfi's plugin, in a process of its own: how long it takes to answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from morfi.checkpoints import Checkpoint
from morfi.checkpoints.tokenizer import open_tokenizer, tokenizer_folder
from morfi.checkpoints.vocabulary import newline_tokens
from morfi.device import is_gpu
from morfi.errors import MorfiError
from morfi.serve import settings as engine_settings

_PLUGINS = "VLLM_PLUGINS"  # the plugins that vLLM loads, all if it is not set
_WORKER = "morfi.serve.plain_worker.WorkerExtension"


def seconds_without_plugin(
    checkpoint: Checkpoint,
    prompts: Sequence[Sequence[int]],
    *,
    context: int,
    overrides: Mapping[str, Any],
    n_tokens: int,
    n_rounds: int,
    verbose: bool = False,
) -> list[float]:
    """The seconds of each of `n_rounds` in which vLLM answers the batch of `prompts` greedily.

    The engine has the settings of `start_engine`, is warmed up by one round before, forgets its prefix cache
    before each, and is gone afterwards. Raises MorfiError where it does not start or answer.
    """
    found = open_tokenizer(checkpoint.model_dir)
    arguments = engine_settings.engine_arguments(
        checkpoint.model_dir,
        dtype=checkpoint.dtype,
        context=context,
        seed=0,
        gpu=is_gpu(),
        overrides=overrides,
        tokenizer=tokenizer_folder(found, checkpoint.model_dir),
    )
    job = {
        "arguments": {**arguments, "worker_extension_cls": _WORKER},
        "prompts": [list(prompt) for prompt in prompts],
        "stop_token_ids": newline_tokens(found.tokenizer),
        "max_tokens": n_tokens,
        "n_rounds": n_rounds,
        "verbose": verbose,
    }
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "morfi.serve.without_plugin"],
        input=json.dumps(job),
        stdout=subprocess.PIPE,
        stderr=None if verbose else subprocess.PIPE,
        text=True,
        env={**os.environ, _PLUGINS: ",".join(_other_plugins())},
        check=False,
    )
    if ended.returncode:
        said = (ended.stderr or "").strip().splitlines()
        reason = said[-1] if said else f"it ended with {ended.returncode}"
        raise MorfiError(f"vLLM without morfi could not answer: {reason}")
    seconds: list[float] = json.loads(ended.stdout)
    return seconds


def _other_plugins() -> list[str]:
    """The plugins of vLLM that are loaded beside morfi's."""
    if _PLUGINS in os.environ:
        return [name for name in os.environ[_PLUGINS].split(",") if name != "morfi"]
    groups = ("vllm.general_plugins", "vllm.platform_plugins", "vllm.io_processor_plugins")
    names = [one.name for group in groups for one in entry_points(group=group)]
    return [name for name in names if name != "morfi"]


def main() -> None:
    """Reads a job as `seconds_without_plugin` writes it; writes the seconds of each round."""
    job = json.load(sys.stdin)
    out = os.dup(1)
    os.dup2(2, 1)  # what vLLM prints is no answer
    engine_settings.prepare_process(gpu=is_gpu(), verbose=job["verbose"])
    from vllm import LLM, SamplingParams

    if not is_gpu():
        import morfi.serve.plain_worker  # noqa: F401 - registers what the settings name
    llm = LLM(**job["arguments"])
    if "morfi.serve.plugin.hooks" in sys.modules:
        raise MorfiError("morfi's plugin was loaded")
    params = SamplingParams(
        temperature=0.0,
        max_tokens=job["max_tokens"],
        stop_token_ids=job["stop_token_ids"],
        detokenize=False,
    )
    prompts: Any = [{"prompt_token_ids": one} for one in job["prompts"]]
    seconds = []
    for _ in range(1 + job["n_rounds"]):
        began = time.perf_counter()
        llm.reset_prefix_cache()
        llm.generate(prompts, params, use_tqdm=False)
        seconds.append(time.perf_counter() - began)
    os.write(out, json.dumps(seconds[1:]).encode())


if __name__ == "__main__":
    main()
