"""Steers one prompt along one direction, and prints the answer without and with it.

The direction is the difference between the residual streams of two texts at their last tokens.
"""

from __future__ import annotations

import argparse

from morfi import Capture, Direction, Sampling, Steering, load_tokenizer, resolve, start_engine


def main() -> None:
    """Captures the two texts, registers their difference, and answers the prompt twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", default="smollm2", help="a preset, a folder, a LoRA adapter or a hub id")
    parser.add_argument("--layer", type=int, default=10)
    parser.add_argument("--strength", type=float, default=0.5, help="at 1 SmolLM2's texts begin to break")
    parser.add_argument("--prompt", default="Q: Which country is Lyon in?\nA:")
    options = parser.parse_args()

    checkpoint = resolve(options.ckpt)
    tokenizer = load_tokenizer(checkpoint.model_dir)
    texts = [tokenizer.encode(text) for text in ("I live in Japan", "I live in France")]
    prompt = tokenizer.encode(options.prompt)
    with start_engine(checkpoint, context=256) as engine:
        captured = engine.generate(texts, Sampling(max_tokens=1), capture=Capture((options.layer,)))
        toward, away = (completion.captured[0].values[0] for (completion,) in captured)
        name = engine.register(Direction(toward - away))
        steering = [[], [Steering(options.layer, name, strength=options.strength)]]
        plain, steered = engine.generate([prompt, prompt], Sampling(max_tokens=16), steering=steering)
    print("plain:  ", plain[0].text)
    print("steered:", steered[0].text)
    print("tokens steered:", steered[0].applied[0].n_tokens)


if __name__ == "__main__":
    main()
