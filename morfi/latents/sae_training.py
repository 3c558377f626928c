"""Training an SAE with SAELens on residual streams of the engine: `morfi sae train`.

The texts are questions with their answers, as evaluation and training show them: each question alone, and
documents of five of one relation, which is how a few-shot prompt looks. The first token of a text is left
out: its residual stream is an attention sink, hundreds of times longer than any other and the same in all
texts, so that it would make up almost all of the variance that an SAE could explain.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from morfi.cache import Cache, Manifest
from morfi.checkpoints import Checkpoint, resolve
from morfi.checkpoints.tokenizer import open_tokenizer
from morfi.conditions.condition import BASE, AnyCondition
from morfi.conditions.live import Serving
from morfi.conditions.load import load_series
from morfi.device import is_gpu, serving_dtype
from morfi.engine.protocol import Sampling, StartEngine
from morfi.engine.residual_stream import stream_of
from morfi.engine.shards import read_shards
from morfi.engine.steering import Capture
from morfi.errors import InputError, MorfiError
from morfi.files import canonical_sha256
from morfi.latents.sae import load_sae
from morfi.latents.sae_check import measure
from morfi.questions import QuestionSet, load_questions, select, with_splits
from morfi.questions.prompts import ANSWERED, ASKED, context_for
from morfi.questions.question import Question
from morfi.runs.life import Ready
from morfi.runs.options import OWN_DTYPE, check_amount, check_numbers, option
from morfi.terminal import Progress

if TYPE_CHECKING:
    import torch

    from morfi.store import Store

QUALITY = "quality.json"
_DOCUMENT = 5  # questions
MAX_TOKENS = 10**12
_BUFFER = 16  # batches that are mixed
Ids = TypeVar("Ids", bound=Sized)  # the tokens of one text


@dataclass(frozen=True, slots=True)
class SaeTraining:
    """Everything that decides a trained SAE; it is cached under the hash of this and of its sources."""

    ckpt: str = option("Preset, model folder or hub id; with --ckpts the series' base is taken.", "smollm2")
    layer: int = option("The decoder layer after which the SAE reads.", 0, required=True)
    ckpts: str | None = option(
        "A train run or TOML file: its ends are captured beside its base.",
        None,
        unset="the model alone",
        metavar="RUN|FILE",
    )
    data: str = option("As for eval; the SAE is measured on its test questions.", "world-facts")
    limit: int = option("At most this many training questions.", 3000)
    d_sae: int | None = option("Number of latents.", None, unset="8 x d_model")
    k: int = option("Latents per token, on average over a batch.", 32)
    tokens: int = option("Tokens that the SAE sees, some of them several times.", 1_000_000)
    lr: float = option("Learning rate.", 1e-3)
    batch: int = option("Tokens per step; large ones leave many latents dead.", 512)
    seed: int = 0
    dtype: str | None = option("bfloat16, float16 or float32, of the model.", None, unset=OWN_DTYPE)
    engine: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_numbers(
            {
                "layer": (self.layer, 0),
                "limit": (self.limit, 1),
                "d-sae": (self.d_sae, 1),
                "k": (self.k, 1),
                "tokens": (self.tokens, 1, MAX_TOKENS),
                "batch": (self.batch, 1),
                "seed": (self.seed, 0),
            }
        )
        check_amount("lr", self.lr, above_zero=True)

    @property
    def n_steps(self) -> int:
        """The steps of the training, each of a batch."""
        return max(1, self.tokens // self.batch)


def configure_sae(given: Mapping[str, Any]) -> SaeTraining:
    """The configuration of the options that were given (those not None)."""
    return SaeTraining(**{key: value for key, value in given.items() if value is not None})


@dataclass(frozen=True, slots=True)
class TrainedSae:
    """An SAE's folder, and its quality on held-out questions: what `quality.json` in it says."""

    folder: Path
    quality: Mapping[str, Any]


def train_sae(config: SaeTraining, store: Store, start_engine: StartEngine, progress: Progress) -> TrainedSae:
    """Captures residuals, trains a BatchTopK SAE on them and measures it; the same again is read from cache.

    Raises InputError where the model, the train run or the data cannot be used.
    """
    ready = ready_sae(config, store, start_engine, progress)
    ready.finish()
    folder = Path(ready.result)
    return TrainedSae(folder, json.loads((folder / QUALITY).read_text()))


def ready_sae(config: SaeTraining, store: Store, start_engine: StartEngine, progress: Progress) -> Ready:
    """The work of `train_sae`; nothing is captured before."""
    found = _sources(config, store, progress)
    base, bos = found.base, found.bos
    stream_of(base).check_layer(config.layer, "--layer")
    tokenizer = open_tokenizer(base.model_dir, bos)
    data = with_splits(load_questions(config.data))
    cache = Cache()
    sources = {"model": base.sha256, "data": data.sha256}
    sources |= found.adapters
    if tokenizer.changes:
        # Other tokens than those that a folder of this sha256 gave before.
        sources["tokens"] = f"{bos}: {', '.join(tokenizer.changes)}"
    options = {**asdict(config), "dtype": base.dtype}
    key = f"sae-{canonical_sha256({'options': options, 'sources': sources})[:16]}"

    def build(folder: Path) -> None:
        begun = time.monotonic()
        work = folder / "residuals"
        work.mkdir()
        for line in tokenizer.changes.values():
            progress.phase(line)
        encoded = read_texts(
            config,
            data,
            lambda texts: tokenizer.tokenizer(list(texts))["input_ids"],
            n_sources=len(found.conditions),
        )
        _capture(config, found, encoded, work, start_engine=start_engine, progress=progress)
        fit(config, work, folder, progress)
        progress.phase("measuring the SAE on held-out questions")
        quality = measure(load_sae(str(folder)), captured_rows(sorted(work.glob("held-out-*")), config.layer))
        measured = {
            "n_tokens": quality.n_tokens,
            "explained_variance": quality.explained_variance,
            "l0": quality.l0,
            "n_dead": quality.n_dead,
            "d_sae": len(quality.fired),
            "wall_s": round(time.monotonic() - begun, 1),
        }
        (folder / QUALITY).write_text(json.dumps({**measured, "config": asdict(config)}, indent=1))
        shutil.rmtree(work)

    def work() -> Sequence[str]:
        name = f"{base.name} layer {config.layer}"
        cache.get_or_create(key, build, Manifest("sae", name, sources), progress.phase)
        return ()

    return Ready(str(cache.folder_of(key)), None if cache.holds(key) else work)


def read_texts(
    config: SaeTraining,
    data: QuestionSet,
    encode: Callable[[Sequence[str]], Sequence[Ids]],
    *,
    n_sources: int,
) -> dict[str, Sequence[Ids]]:
    """What each of the `n_sources` models reads, for "train" and for "held-out", as `encode` gives it.

    Of the texts for training, in their drawn order, there are only as many as its tokens need.
    """
    chosen = {
        "train": select(data.splits["train"], limit=config.limit, seed=config.seed),
        "held-out": select(data.splits["test"], limit=max(1, config.limit // 4), seed=config.seed),
    }
    texts = {name: encode(make_texts(questions, config.seed)) for name, questions in chosen.items()}
    # Beside the steps' batches, three times what the buffer holds: for the norm, the mean and at the end.
    n_needed = (config.n_steps + 3 * _BUFFER) * config.batch
    n_rows = list(accumulate(n_sources * (len(ids) - 1) for ids in texts["train"]))
    return {**texts, "train": texts["train"][: bisect_left(n_rows, n_needed) + 1]}


def make_texts(questions: Sequence[Question], seed: int) -> list[str]:
    """Each question alone with its answer, and documents of five of one relation, each question in one."""
    draw = random.Random(f"sae/{seed}")  # noqa: S311 - a reproducible draw, not a secret
    texts = [f"{ASKED.format(question=q.text)} {q.answers[0]}\n" for q in questions]
    by_relation: dict[str, list[Question]] = {}
    for question in questions:
        by_relation.setdefault(question.relation, []).append(question)
    for _, members in sorted(by_relation.items()):
        draw.shuffle(members)
        for start in range(0, len(members), _DOCUMENT):
            shown = members[start : start + _DOCUMENT]
            texts.append("".join(ANSWERED.format(question=q.text, answer=q.answers[0]) for q in shown))
    draw.shuffle(texts)
    return texts


@dataclass(frozen=True, slots=True)
class _Sources:
    """The models whose residual streams are captured, the base model first."""

    base: Checkpoint
    bos: str
    conditions: tuple[AnyCondition, ...]
    open: Callable[[AnyCondition], Checkpoint]
    adapters: Mapping[str, str]  # sha256 by mixture, for the cache


def _sources(config: SaeTraining, store: Store, progress: Progress) -> _Sources:
    """The base model and, of a series, the checkpoints of the lowest and highest level."""
    if config.ckpts is None:
        base = resolve(config.ckpt, dtype=config.dtype, say=progress.phase)
        return _Sources(base, "auto", (BASE,), lambda _: base, {})
    series = load_series(config.ckpts, store, config.dtype, progress)
    # Sorted by level, and inside a level by epoch: the last of a level is the one trained longest.
    ends = {one.level: one for one in sorted(series.members, key=lambda one: (one.level, one.epoch or 0))}
    chosen = [ends[level] for level in sorted({min(ends), max(ends)})]
    adapters = {f"D_{one.level}": series.members[one].sha256 for one in chosen}
    return _Sources(series.base, series.bos, (BASE, *chosen), series.open, adapters)


def _capture(
    config: SaeTraining,
    sources: _Sources,
    encoded: Mapping[str, Sequence[Sequence[int]]],
    work: Path,
    *,
    start_engine: StartEngine,
    progress: Progress,
) -> None:
    """Residual streams of every text under every source, in a folder each."""
    base = sources.base
    context = context_for(base, config.engine)
    progress.phase("starting vLLM")
    with start_engine(base, context=context, seed=config.seed, overrides=config.engine) as engine:
        serving = Serving(sources.open, progress, base)
        n_texts = sum(map(len, encoded.values()))
        progress.start(n_texts * len(sources.conditions), 0, "texts")
        for number, condition in enumerate(sources.conditions):
            checkpoint = serving.opened(condition)
            if checkpoint is None:
                raise MorfiError(serving.failures[0])
            try:
                serving.load(engine, checkpoint)
            except MorfiError as error:
                raise MorfiError(serving.fail(condition, error)) from error
            for name, texts in encoded.items():
                if longest := max((len(ids) for ids in texts if len(ids) >= context), default=0):
                    raise InputError(f"a text has {longest} tokens, the model takes {context}")
                engine.reset_prefix_cache()
                with engine.shards(work / f"{name}-{number}"):
                    engine.generate(
                        texts,
                        Sampling(max_tokens=1),
                        progress.advance,
                        capture=Capture((config.layer,), "prompt"),
                    )


def captured_rows(folders: Sequence[Path], layer: int) -> Iterator[torch.Tensor]:
    """The residual streams in `folders`, shard by shard, without the first token of each text."""
    for folder in folders:
        for shard in read_shards(folder):
            if shard.layer == layer:
                yield shard.values[shard.position > 0]


def fit(config: SaeTraining, work: Path, folder: Path, progress: Progress) -> None:
    """Trains the SAE on what `work` holds and writes it to `folder` as SAELens does."""
    import torch
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.mixing_buffer import mixing_buffer
    from sae_lens.training.sae_trainer import SAETrainer

    folders = sorted(work.glob("train-*"))
    d_model = next(captured_rows(folders, config.layer)).shape[1]
    torch.manual_seed(config.seed)
    device = "cuda" if is_gpu() else "cpu"

    def again_and_again() -> Iterator[torch.Tensor]:
        while True:
            yield from captured_rows(folders, config.layer)

    batches = mixing_buffer(_BUFFER * config.batch, config.batch, again_and_again())
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=d_model,
            d_sae=config.d_sae or 8 * d_model,
            k=float(config.k),
            normalize_activations="expected_average_only_in",
            device=device,
            metadata=SAEMetadata(model_name=config.ckpt, hook_name=f"blocks.{config.layer}.hook_resid_post"),
        )
    )
    n_steps = config.n_steps
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=n_steps * config.batch,
            train_batch_size_samples=config.batch,
            lr=config.lr,
            lr_end=config.lr / 10,
            lr_warm_up_steps=n_steps // 20,
            lr_decay_steps=n_steps // 3,
            dead_feature_window=max(1, n_steps // 20),
            device=device,
            autocast=serving_dtype("bfloat16") == "bfloat16",
        ),
        sae,
        batches,
    )
    progress.phase("training the SAE")
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        trainer.activation_scaler.estimate_scaling_factor(
            d_in=d_model, data_provider=batches, n_batches_for_norm_estimate=_BUFFER
        )
    scale = trainer.activation_scaler.scaling_factor
    assert scale is not None
    with torch.no_grad():
        # What all tokens share is no latent's work: from zero, thousands would learn it and then fall silent.
        sae.b_dec.copy_(torch.stack([next(batches).mean(0) for _ in range(_BUFFER)]).mean(0) * scale)
    progress.start(n_steps * config.batch, 0, "tokens")
    for _ in range(n_steps):
        trainer.step(next(batches))
        trainer.n_training_steps += 1
        progress.advance(config.batch)
    sae.fold_activation_norm_scaling_factor(scale)
    trainer.set_final_sae_metadata()
    sae.save_inference_model(folder)
