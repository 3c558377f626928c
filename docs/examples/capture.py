"""Captures the residual stream after a layer at the last token of each line of a file, into one tensor."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from morfi import Capture, Sampling, load_tokenizer, resolve, start_engine


def main() -> None:
    """Saves `residuals`, float32 [n_prompts, d_model], in a safetensors file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", type=Path, help="a text file, one prompt per line that is not empty")
    parser.add_argument("--ckpt", default="smollm2", help="a preset, a folder, a LoRA adapter or a hub id")
    parser.add_argument("--layer", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("residuals.safetensors"))
    options = parser.parse_args()

    checkpoint = resolve(options.ckpt)
    tokenizer = load_tokenizer(checkpoint.model_dir)
    lines = filter(None, options.prompts.read_text(encoding="utf-8").splitlines())
    prompts = [tokenizer.encode(line) for line in lines]
    with start_engine(checkpoint, context=256) as engine:
        wanted = Capture(layers=(options.layer,), positions="last_prompt")
        completions = engine.generate(prompts, Sampling(max_tokens=1), capture=wanted)
    residuals = torch.cat([completion.captured[0].values for (completion,) in completions])
    save_file({"residuals": residuals}, options.out)
    print(f"{options.out}: {tuple(residuals.shape)}")


if __name__ == "__main__":
    main()
