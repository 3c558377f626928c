"""How fast this machine is, measured by the commands' own code on little work: `morfi plan --calibrate`."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from morfi.checkpoints import Checkpoint, resolve, resolve_live
from morfi.device import device_name, is_gpu
from morfi.engine.directions import Direction
from morfi.engine.operations import ADD
from morfi.engine.protocol import Engine, Sampling, StartEngine
from morfi.engine.steering import Capture, Steering
from morfi.engine.strengths import steering_of
from morfi.latents.sae import load_sae
from morfi.latents.sae_check import measure
from morfi.latents.sae_training import SaeTraining, captured_rows, fit, make_texts
from morfi.planning.asked import Encoder, encoder_of
from morfi.planning.calibration import Calibration
from morfi.planning.cost import Setup, dev_flops, sae_flops, training_flops
from morfi.planning.counts import training_of
from morfi.planning.rates import CPU_AT_ONCE, Rates
from morfi.planning.shape import Shape, shape_of
from morfi.questions import QuestionSet, select
from morfi.questions.prompts import ASKED, context_for
from morfi.questions.question import Question
from morfi.runs.provenance import versions
from morfi.store.records import CheckpointRow, EpochRow
from morfi.terminal import Progress
from morfi.training.config import TrainConfig, train_config
from morfi.training.plan import Mixture, TrainingData, prepare_training
from morfi.training.run import run_training

if TYPE_CHECKING:
    import torch

_EXAMPLES, _EPOCHS, _DEV = 96, 3, 32
_QUESTIONS = 256  # that are answered
_TEXTS = 96  # that are read
_STEERED = (8, 48)  # questions and directions
_SAE_STEPS = 64
_TRIED_BYTES = 1 << 26  # that are written, and moved in memory
# Not measured: they are small beside what is.
_ANSWER_S = 1.5e-4
_STAGE_S = 1.5
_READ = 5e8


@dataclass(frozen=True, slots=True)
class Sample:
    """What is measured on: a model, and questions of one relation."""

    ckpt: str  # as it was given
    base: Checkpoint
    shape: Shape
    setup: Setup
    encoder: Encoder
    data: QuestionSet
    train: tuple[Question, ...]
    asked: tuple[Question, ...]

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text."""
        return list(self.encoder.tokenizer(list(texts))["input_ids"])

    @property
    def layer(self) -> int:
        """The layer that is captured and steered: five sixths of the way up, as in the presets."""
        return self.shape.n_layers * 5 // 6


@dataclass(frozen=True, slots=True)
class _Trained:
    flops: float
    training_s: float
    dev_flops: float
    adapter: Path


@dataclass(frozen=True, slots=True)
class _Served:
    start_s: float
    swap_s: float
    prompt_flops: float
    answer_flops: float
    steered_s: float
    row_s: float


def calibrate(
    ckpt: str, data: QuestionSet, relation: str, start_engine: StartEngine, progress: Progress
) -> Calibration:
    """The rates of this machine, measured on the model `ckpt` and the questions of a `relation` of `data`.

    A few optimizer steps, some hundred answers and a short SAE: a minute on two cores with a small model.
    Raises InputError for a model that cannot be trained or served.
    """
    sample = _sample(ckpt, data, relation, progress)
    with tempfile.TemporaryDirectory(prefix="morfi-calibrate-") as name:
        folder = Path(name)
        progress.phase("training")
        trained = _train(sample, folder / "checkpoints", progress)
        served = _serve(sample, trained.adapter, folder, start_engine, progress)
        progress.phase("training an SAE")
        of_sae, of_encoding = _fit(sample, folder)
        write = _TRIED_BYTES / _timed(lambda: _write(folder / "written"))
    weights = sample.shape.n_parameters * sample.setup.number_bytes
    rates = Rates(
        prompt_flops=served.prompt_flops,
        answer_flops=served.answer_flops,
        answer_bytes_per_s=_memory_bytes_per_s(),
        at_once=CPU_AT_ONCE,
        answer_s=_ANSWER_S,
        steered_s=served.steered_s,
        row_s=served.row_s,
        start_s=served.start_s,
        start_bytes=weights,
        read_bytes_per_s=_READ,
        swap_bytes_per_s=weights / served.swap_s,
        train_flops=trained.flops,
        train_part_s=0.0,
        training_s=trained.training_s,
        dev_flops=trained.dev_flops,
        dev_pass_s=0.0,
        sae_flops=of_sae,
        sae_step_s=0.0,
        encode_flops=of_encoding,
        write_bytes_per_s=write,
        stage_s=_STAGE_S,
    )
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return Calibration(device_name(), ckpt, at, versions(), rates)


def _sample(ckpt: str, data: QuestionSet, relation: str, progress: Progress) -> Sample:
    base = resolve(ckpt, say=progress.phase)
    shape, _ = shape_of(ckpt, progress.phase)
    encoder, _ = encoder_of(base.model_dir, "auto")
    config = train_config({"model": ckpt})
    setup = Setup(
        number_bytes=4 if base.dtype == "float32" else 2,
        gpu=is_gpu(),
        rank=config.rank,
        targets=config.targets,
        checkpointing=config.gradient_checkpointing,
        micro_batch=config.micro_batch,
    )
    return Sample(
        ckpt,
        base,
        shape,
        setup,
        encoder,
        data,
        select(data.splits["train"], relations=(relation,), limit=_EXAMPLES),
        select(data.splits["test"], relations=(relation,), limit=_QUESTIONS),
    )


def _train(sample: Sample, folder: Path, progress: Progress) -> _Trained:
    """A training of some epochs: the first is slower by what a training takes before its first step.

    The fastest of the others counts, and the fastest dev answers: whatever else runs here only slows them.
    """
    config: TrainConfig = train_config(
        {"model": sample.ckpt, "epochs": (_EPOCHS,), "early_stop": False, "dev_limit": _DEV}
    )
    dev = select(sample.asked, limit=_DEV)
    data = TrainingData(sample.data.name, sample.data.sha256, (Mixture(0, sample.train),), dev)
    task = prepare_training(config, data, progress)
    epochs: list[EpochRow] = []

    def keep(row: EpochRow | CheckpointRow) -> None:
        if isinstance(row, EpochRow):
            epochs.append(row)

    (made,) = run_training(task, folder, keep, progress, attempt=1)
    done = training_of(config, sample.encoder, sample.train, dev, size=len(sample.train), n=1)
    later = min(row.train_s for row in epochs[1:])
    return _Trained(
        flops=training_flops(done, sample.shape, sample.setup) / _EPOCHS / later,
        training_s=max(0.0, epochs[0].train_s - later),
        dev_flops=dev_flops(done, sample.shape, sample.setup) / _EPOCHS / min(row.dev_s for row in epochs),
        adapter=Path(made.path),
    )


def _serve(
    sample: Sample, adapter: Path, folder: Path, start_engine: StartEngine, progress: Progress
) -> _Served:
    """An engine's start, its answers, a capture, steered answers and a swap."""
    texts = sample.token_ids(make_texts(select(sample.asked, limit=_TEXTS), 0))
    prompts = sample.token_ids([ASKED.format(question=one.text) for one in sample.asked])
    body, head = 2 * sample.shape.n_body, 2 * sample.shape.n_head
    context = context_for(sample.base, {})
    progress.phase("starting vLLM, twice: the first start also loads its code")
    with start_engine(sample.base, context=context, seed=0, overrides={}):
        pass
    begun = time.monotonic()
    with start_engine(sample.base, context=context, seed=0, overrides={}) as engine:
        start_s = time.monotonic() - begun
        progress.phase("answering")
        _ask(engine, prompts[:8], 2)
        short_s, _ = _ask(engine, prompts, 1)
        long_s, _ = _ask(engine, texts, 1)
        answer_s, n_answered = _ask(engine, prompts, 16)
        read = sum(map(len, (*prompts, *texts))) * body + (len(prompts) + len(texts)) * head
        prompt_flops = read / (short_s + long_s)
        decoded = max(1, n_answered - len(prompts))
        answer_flops = decoded * (body + head) / max(answer_s - short_s, 1e-3)
        with engine.shards(folder / "train-0"):
            capture_s, _ = _ask(engine, texts, 1, capture=Capture((sample.layer,), "prompt"))
        steered_s = _steered(engine, sample, prompts, prompt_flops, answer_flops)
        progress.phase("swapping")
        checkpoint = resolve_live(str(adapter), base=sample.base)
        swap_s = _timed(lambda: engine.load_checkpoint(checkpoint))
    n_rows = sum(map(len, texts))
    return _Served(
        start_s=start_s,
        swap_s=swap_s,
        prompt_flops=prompt_flops,
        answer_flops=answer_flops,
        steered_s=steered_s,
        row_s=max(0.0, capture_s - long_s) / n_rows,
    )


def _steered(
    engine: Engine, sample: Sample, prompts: Sequence[Sequence[int]], prompt_flops: float, answer_flops: float
) -> float:
    """What a steered answer takes beyond its operations, in seconds."""
    import torch

    n_questions, n_directions = _STEERED
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(n_directions, sample.shape.d_model, generator=draw)
    names = [engine.register(Direction(row)) for row in vectors / vectors.norm(dim=1, keepdim=True)]
    steerings = [
        [steering_of(sample.layer, name, ADD.name, 1.0, median_norm=1.0)] for name in names
    ] * n_questions
    asked = [ids for ids in prompts[:n_questions] for _ in names]
    body, head = 2 * sample.shape.n_body, 2 * sample.shape.n_head
    took_s, n_answered = _ask(engine, asked, 16, steering=steerings)
    above = 1.0 if sample.setup.gpu else 1 - (sample.layer + 1) / sample.shape.n_layers
    once = sum(map(len, prompts[:n_questions]))
    computed = once + (sum(map(len, asked)) - once) * above
    expected = (computed * body + len(asked) * head) / prompt_flops
    expected += (n_answered - len(asked)) * (body + head) / answer_flops
    return max(0.0, took_s - expected) / len(asked)


def _ask(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    *,
    capture: Capture | None = None,
    steering: Sequence[Sequence[Steering]] | None = None,
) -> tuple[float, int]:
    """The seconds that all answers take together, and their tokens."""
    engine.reset_prefix_cache()
    begun = time.monotonic()
    answered = engine.generate(prompts, Sampling(max_tokens=max_tokens), capture=capture, steering=steering)
    return time.monotonic() - begun, sum(len(one.token_ids) for (one,) in answered)


def _fit(sample: Sample, folder: Path) -> tuple[float, float]:
    """FLOP/s of an SAE's training and of encoding, on what was captured in `folder`."""
    config = SaeTraining(ckpt=sample.ckpt, layer=sample.layer)
    config = replace(config, tokens=_SAE_STEPS * config.batch)
    clock = _Clock()
    fit(config, folder, folder / "sae", clock)
    d_model, d_sae = sample.shape.d_model, 8 * sample.shape.d_model
    sae = load_sae(str(folder / "sae"))
    rows: list[torch.Tensor] = list(captured_rows([folder / "train-0"], sample.layer))
    encoding_s = _timed(lambda: measure(sae, rows))
    return (
        clock.tokens_per_s * sae_flops(1, d_model, d_sae),
        2.0 * sum(map(len, rows)) * d_model * d_sae / encoding_s,
    )


@dataclass(slots=True)
class _Clock:
    """A progress that remembers when its work was done, and how much: tokens by time."""

    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def phase(self, text: str) -> None:
        """Nothing."""

    def start(self, n_total: int, n_done: int, unit: str) -> None:
        """Nothing."""

    def advance(self, n: int) -> None:
        """Notes the time."""
        self.times.append(time.monotonic())
        self.tokens.append(n)

    @property
    def tokens_per_s(self) -> float:
        """From the first step's end to the last's."""
        return sum(self.tokens[1:]) / (self.times[-1] - self.times[0])


def _memory_bytes_per_s() -> float:
    """The bytes that are read and written in a second when a tensor is copied on the device."""
    import torch

    tensor = torch.zeros(_TRIED_BYTES, dtype=torch.uint8, device="cuda" if is_gpu() else "cpu")
    copy = tensor.clone()

    def repeat() -> None:
        for _ in range(8):
            copy.copy_(tensor)
        float(copy[0])  # waits for a GPU

    repeat()
    return 8 * 2 * _TRIED_BYTES / _timed(repeat)


def _write(path: Path) -> None:
    with path.open("wb") as file:
        file.write(bytes(_TRIED_BYTES))
        file.flush()
        os.fsync(file.fileno())


def _timed(work: Callable[[], object]) -> float:
    begun = time.monotonic()
    work()
    return max(time.monotonic() - begun, 1e-6)
