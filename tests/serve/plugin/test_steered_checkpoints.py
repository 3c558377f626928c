"""Steering of another checkpoint in a live engine, and of the real SmolLM2, each in engines of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hooked_model import PREFIX, Served, by_hooks, check_captured, make_directions
from transformers import AutoModelForCausalLM

from morfi.checkpoints import resolve, resolve_unmerged
from morfi.engine.directions import Direction
from morfi.engine.protocol import Sampling
from morfi.engine.steering import Capture, Steering
from morfi.serve.engine import Engine


@pytest.mark.usefixtures("starts_vllm")
def test_another_checkpoint_is_steered_as_itself(
    tmp_path: Path, isolated: Path, tiny_base: Callable[[str], Path], train: Callable[..., Path]
) -> None:
    """After a swap the directions are still there, and what was cached under the old weights is not used."""
    base = tiny_base("llama")
    adapter = train(tmp_path / "adapter", base)
    checkpoint = resolve_unmerged(str(adapter), base=resolve(str(base), dtype="float32"))
    found = []
    for live in (True, False):
        start = base if live else resolve(str(adapter), dtype="float32").model_dir
        with Engine(start, dtype="float32", context=256, sha256=checkpoint.base_sha256) as engine:
            name = engine.register(make_directions(0)[0])
            wanted = [Steering(0, name, strength=2.0)]
            if live:
                engine.generate([PREFIX], Sampling(max_tokens=6), steering=[wanted])  # cached, steered
                (before,) = engine.generate([PREFIX], Sampling(), capture=Capture((1,), "all"))[0]
                engine.load_checkpoint(checkpoint)
            for steering in (wanted, []):
                (again,) = engine.generate([PREFIX], Sampling(max_tokens=6), steering=[steering])[0]
                (one,) = engine.generate(
                    [PREFIX], Sampling(max_tokens=6), steering=[steering], capture=Capture((1,), "all")
                )[0]
                found.append((again.token_ids + one.token_ids, one.captured[0].values))
    assert not torch.equal(found[1][1][: len(PREFIX)], before.captured[0].values[: len(PREFIX)])
    for swapped, started in zip(found[:2], found[2:], strict=True):
        assert swapped[0] == started[0]
        assert torch.equal(swapped[1], started[1])


@pytest.mark.usefixtures("starts_vllm")
def test_smollm2_equals_hooks(smollm2_dir: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval()
    draw = torch.Generator().manual_seed(0)
    with Engine(smollm2_dir, dtype="float32", context=256) as engine:
        direction = Direction(torch.randn(576, generator=draw))
        name = engine.register(direction)
        served = Served(engine, reference, {name: direction}, [name])
        prompts = [
            engine._tokenizer.encode(text)
            for text in ("Q: Which country is Lyon in?\nA:", "The capital of Peru is", "Two and two make")
        ]
        steering = [
            [Steering(15, name, strength=4.0)],
            [Steering(10, name, strength=-3.0, positions="last_prompt"), Steering(25, name, "project")],
            [],
        ]
        capture = Capture((15, 25), "all")
        found = engine.generate(prompts, Sampling(max_tokens=8), steering=steering, capture=capture)
    for prompt, wanted, (one,) in zip(prompts, steering, found, strict=True):
        tokens, after, _ = by_hooks(served, prompt, wanted, 8)
        assert list(one.token_ids) == tokens
        check_captured(one, capture, prompt, after)
