"""A model's sizes and the work of some stages, for tests of what they cost."""

from __future__ import annotations

from morfi.planning.shape import Linear, Shape
from morfi.planning.work import Answering, Sae, Training, Work

# Llama 3.1 8B; see its config.json.
LLAMA = Shape(
    "llama",
    n_layers=32,
    d_model=4096,
    d_ff=14336,
    vocabulary=128256,
    n_parameters=8_030_261_248,
    n_body=6_979_588_096,
    linears=(Linear("q_proj", 4096, 4096, 32), Linear("down_proj", 14336, 4096, 32)),
    kv_per_token=2 * 32 * 8 * 128,
)
ANSWERS = Answering(answers=10_000, prompt_tokens=800_000, cached=600_000, answer_tokens=40_000, longest=100)
TRAINING = Training(
    trainings=2,
    examples=640,
    tokens=10_000,
    target_tokens=1_500,
    steps=20,
    parts=80,
    epochs=2,
    dev_answers=64,
    dev_tokens=1_200,
    dev_passes=32,
    checkpoints=2,
    largest_part=8 * 20,
    largest_targets=24,
)
WORKS = {
    "answering": (Work("split", "", starts=1, swaps=1, answering=ANSWERS), "answering"),
    "training": (Work("train", "", training=TRAINING), "training"),
    "sae": (Work("sae train", "", sae=Sae(10_000, 20, 5_000, 32_768)), "sae"),
}
