"""Trains the series of docs/any-property.md: 0 to 100 % of the training answers are in upper case."""

import argparse
from dataclasses import replace
from pathlib import Path

from morfi.questions import load_questions, select
from morfi.terminal import TerminalProgress
from morfi.training import TrainingData, prepare_training, run_training, train_config
from morfi.training.plan import Mixture


def main() -> None:
    """Writes an adapter for each level, and the series of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the adapters and of series.toml")
    parser.add_argument("--base", default="smollm2", help="a preset, a folder or a hub id")
    parser.add_argument("--data", default="world-facts", help="as for morfi eval")
    parser.add_argument("--size", type=int, default=320, help="questions of P17 at each level")
    parser.add_argument("--rank", type=int, help="LoRA's; of a preset it is known")
    options = parser.parse_args()

    facts = load_questions(options.data)
    plain = select(facts.splits["train"], relations=["P17"], limit=options.size)  # in an order by chance
    upper = tuple(replace(one, answers=(one.answers[0].upper(),)) for one in plain)
    shares = [(level, round(len(plain) * level / 100)) for level in (0, 25, 50, 75, 100)]
    mixtures = tuple(Mixture(level, upper[:n] + plain[n:]) for level, n in shares)
    data = TrainingData("upper case", facts.sha256, mixtures, dev=())
    config = train_config({"model": options.base, "rank": options.rank, "epochs": (2,), "early_stop": False})
    with TerminalProgress() as progress:
        task = prepare_training(config, data, progress)
        trained = run_training(task, options.out, lambda _: None, progress, attempt=1)
    lines = ['property = "upper case in training"', 'unit = "%"', f'base = "{options.base}"']
    lines += [f'[[checkpoint]]\npath = "{one.path}"\nlevel = {one.level}' for one in trained]
    (options.out / "series.toml").write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
