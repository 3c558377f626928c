"""Seconds, memory and disk of a stage, from its work, its model's sizes and a machine's rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from morfi.checkpoints.base_room import Room
from morfi.planning.rates import Rates
from morfi.planning.shape import Shape
from morfi.planning.swaps import Swap
from morfi.planning.work import Answering, Sae, Training, Work

PROCESS = int(1.5e9)  # bytes of a process with torch and vLLM, without a model
CPU_KV = 2**30  # bytes of keys and values that morfi gives vLLM on a CPU
CUDA = int(0.6e9)  # bytes of a CUDA context and of what libraries keep
STEP = 2048  # tokens of a step whose activations an engine holds
IN_FLIGHT = 64  # requests whose keys and values must fit, or an engine would answer them one after another


@dataclass(frozen=True, slots=True)
class Setup:
    """How the model is held: bytes of a number, GPUs that serve it, and whether there is any.

    `swap` is what swapping an adapter takes where that was not measured.
    """

    number_bytes: int
    gpu: bool
    n_gpus: int = 1
    rank: int = 32
    targets: tuple[str, ...] = ("all-linear",)
    checkpointing: bool = False
    micro_batch: int = 1
    swap: Swap | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """What a stage takes: `seconds` by what it is spent on, None where no rates are known; bytes.

    `gpu` is what the GPU must have, on each that serves; `disk` stays, `passing` is freed at the end.
    """

    seconds: Mapping[str, float] | None
    gpu: int
    host: int
    disk: int
    passing: int

    @property
    def total_s(self) -> float | None:
        """The seconds of all of it."""
        return None if self.seconds is None else sum(self.seconds.values())


def cost_of(work: Work, shape: Shape, setup: Setup, rates: Rates | None) -> Cost:
    """What `work` takes."""
    gpu, host = memory_of(work, shape, setup)
    seconds = None if rates is None else seconds_of(work, shape, setup, rates)
    return Cost(seconds, gpu, host, sum(work.disk.values()), work.passing)


def seconds_of(work: Work, shape: Shape, setup: Setup, rates: Rates) -> dict[str, float]:
    """The seconds of `work` by what they are spent on."""
    found = {"start and end": rates.stage_s}
    weights = shape.n_parameters * setup.number_bytes
    if work.starts:
        more = max(0.0, weights - rates.start_bytes) / rates.read_bytes_per_s
        found["engine start"] = work.starts * (rates.start_s + more)
    if work.swaps:
        by_rate = weights / rates.swap_bytes_per_s
        found["swaps"] = work.swaps * (by_rate if setup.swap is None else setup.swap.seconds)
    if work.answering.answers:
        found |= _answering(work.answering, shape, setup, rates)
    if work.rows:
        found["captured rows"] = work.rows * rates.row_s
    if work.training is not None:
        found |= _training(work.training, shape, setup, rates)
    if work.sae is not None:
        found |= _sae(work.sae, shape, rates)
    written = sum(work.disk.values()) + work.passing * (work.training.epochs if work.training else 1)
    found["writing"] = written / rates.write_bytes_per_s
    return found


def _answering(done: Answering, shape: Shape, setup: Setup, rates: Rates) -> dict[str, float]:
    body, head = 2 * shape.n_body, 2 * shape.n_head
    weights = shape.n_parameters * setup.number_bytes
    computed = done.prompt_tokens - done.cached - done.skipped
    decoded = max(0, done.answer_tokens - done.answers)
    at_once = min(rates.at_once, done.answers)
    operations = (decoded - done.skipped_answers) * body + decoded * head
    read = decoded * weights / at_once
    return {
        "prompts": (computed * body + done.answers * head) / rates.prompt_flops,
        "answers": max(operations / rates.answer_flops, read / rates.answer_bytes_per_s),
        "judging and storing": done.answers * rates.answer_s + done.steered * rates.steered_s,
    }


def training_flops(done: Training, shape: Shape, setup: Setup) -> float:
    """The useful operations of trainings.

    A token costs 2 for each frozen weight forward and 2 for the gradient of its input, 2 more where its
    activations are computed twice, and 6 for each weight of LoRA; the output head only at answer tokens.
    """
    passes = 6 if setup.checkpointing else 4
    lora = shape.lora_parameters(setup.rank, setup.targets)
    return done.tokens * (passes * shape.n_body + 6 * lora) + done.target_tokens * 4 * shape.n_head


def dev_flops(done: Training, shape: Shape, setup: Setup) -> float:
    """The useful operations of the dev answers of trainings, LoRA beside the weights."""
    lora = shape.lora_parameters(setup.rank, setup.targets)
    return done.dev_tokens * 2 * (shape.n_body + lora)


def _training(done: Training, shape: Shape, setup: Setup, rates: Rates) -> dict[str, float]:
    passes = 4 if setup.checkpointing else 3
    weights = shape.n_parameters * setup.number_bytes
    of_parts = done.parts * shape.n_layers * rates.train_part_s * passes / 3
    return {
        "loading": weights / rates.read_bytes_per_s + done.trainings * rates.training_s,
        "training": training_flops(done, shape, setup) / rates.train_flops + of_parts,
        "dev answers": dev_flops(done, shape, setup) / rates.dev_flops
        + done.dev_passes * shape.n_layers * rates.dev_pass_s,
    }


def sae_flops(n_tokens: int, d_model: int, d_sae: int) -> float:
    """The operations of training an SAE: two products forward, and twice as many backward."""
    return 12.0 * n_tokens * d_model * d_sae


def _sae(done: Sae, shape: Shape, rates: Rates) -> dict[str, float]:
    training = sae_flops(done.tokens, shape.d_model, done.d_sae) / rates.sae_flops
    return {
        "SAE": training + done.steps * rates.sae_step_s,
        "encoding": 2.0 * done.encoded * shape.d_model * done.d_sae / rates.encode_flops,
    }


def memory_of(work: Work, shape: Shape, setup: Setup) -> tuple[int, int]:
    """The bytes that the stage needs on a GPU, and of the machine's memory."""
    weights = shape.n_parameters * setup.number_bytes
    device = 0
    if work.starts:
        device = max(device, serving_bytes(work.answering, shape, setup))
    if work.training is not None:
        device = max(device, training_bytes(work.training, shape, setup))
    if work.sae is not None:
        # Weights, gradients, both moments and as many again while they are used; all in float32.
        device = max(device, 4 * 5 * 2 * shape.d_model * work.sae.d_sae)
    if not setup.gpu:
        return 0, PROCESS + device
    host = 2 * PROCESS + (weights if work.starts or work.training else 0)
    if work.swaps and setup.swap is not None and setup.swap.room == Room.PINNED:
        host += setup.n_gpus * setup.swap.reads
    return (device + CUDA if device else 0), host


def serving_bytes(done: Answering, shape: Shape, setup: Setup) -> int:
    """The bytes that an engine needs at least on each GPU: weights, requests in flight, a step's activations.

    On a CPU the keys and values that morfi gives it.
    """
    weights = shape.n_parameters * setup.number_bytes
    step = STEP * (4 * shape.d_model + 2 * shape.d_ff) * setup.number_bytes
    kv = IN_FLIGHT * done.longest * shape.kv_per_token * setup.number_bytes if setup.gpu else CPU_KV
    return (weights + kv) // setup.n_gpus + step


def training_bytes(done: Training, shape: Shape, setup: Setup) -> int:
    """The bytes of a LoRA training: the frozen model, LoRA with gradient and two moments, and activations.

    A linear layer keeps its input as it is and in float32 for LoRA, a block its gate and norms; with
    checkpointing only the inputs of the layers are kept, and one layer's activations. Logits are in float32
    twice and once as they are.
    """
    lora = 16 * shape.lora_parameters(setup.rank, setup.targets)
    kept = sum(one.n * one.d_in for one in shape.linears) / shape.n_layers * (setup.number_bytes + 4)
    a_layer = done.largest_part * (kept + setup.number_bytes * (4 * shape.d_ff + 8 * shape.d_model))
    inputs = done.largest_part * shape.d_model * setup.number_bytes * shape.n_layers
    activations = inputs + a_layer if setup.checkpointing else a_layer * shape.n_layers
    logits = done.largest_targets * shape.vocabulary * (8 + setup.number_bytes)
    return round(shape.n_parameters * setup.number_bytes + lora + activations + logits)
