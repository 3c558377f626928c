"""Shared: a tiny random model with a real tokenizer, a question file, and an engine that needs no vLLM."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import page_walk
import pytest
from fake_engine import SPECIAL, FakeEngine
from progress_log import Log

from morfi.questions.question import Question
from morfi.store import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from morfi.engine.steering import Steering

CONTEXT = 512
BRINGS_BACK = -3.0  # added along latent 0: half of what the base knew, at twice that all of it


def pytest_configure() -> None:
    """Lets the tests send Ctrl-C where a shell started them in the background, with SIGINT ignored.

    How long an example of hypothesis takes says more of the machine than of the code: none has a deadline.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    hypothesis.settings.register_profile("morfi", deadline=None, derandomize="CI" in os.environ)
    hypothesis.settings.load_profile("morfi")


# By a fixture: what starts vLLM or Chromium, or begins where a whole experiment ends, asks for it, and
# `make check` passes over tests with the mark.
_MARKS = {"starts_vllm": "engine", "chromium": "browser", "trained_once": "long"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by what they ask for; what is marked `quick` is never `long`."""
    for item in items:
        for name in _MARKS.keys() & set(getattr(item, "fixturenames", ())):
            if _MARKS[name] != "long" or item.get_closest_marker("quick") is None:
                item.add_marker(_MARKS[name])


@pytest.fixture(scope="session")
def starts_vllm() -> None:
    """Asked for by every fixture and test that starts vLLM."""


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of Chromium; a test that asks for it is skipped where there is none."""
    found = page_walk.chromium()
    if found is None:
        pytest.skip(f"none of {', '.join(page_walk.CHROMIUMS)} is on PATH (apt-get install chromium)")
    return found


@pytest.fixture
def isolated_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no database named by the environment, whatever the user has set."""
    monkeypatch.setenv("MORFI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MORFI_DB", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Makes a tokenizer of single bytes: byte b is token b + 3, after the special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    def make(*, has_bos: bool = True, adds_bos: bool = True, chat_template: str | None = None) -> Any:
        vocabulary = {token: index for index, token in enumerate(SPECIAL)}
        vocabulary |= {f"<0x{byte:02X}>": byte + len(SPECIAL) for byte in range(256)}
        fast = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
        fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        fast.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
        if adds_bos:
            fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        return PreTrainedTokenizerFast(
            tokenizer_object=fast,
            bos_token="<s>" if has_bos else None,
            eos_token="</s>",
            unk_token="<unk>",
            chat_template=chat_template,
        )

    return make


@pytest.fixture(scope="session")
def tiny_model(
    tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., PreTrainedTokenizerFast]
) -> Path:
    """A folder with a random Llama of two layers and a context of 512, and its tokenizer; only to be read."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + 256,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
    )
    path = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def _questions() -> dict[str, list[Question]]:
    countries, capitals = ("France", "Côte d'Ivoire", "Peru"), ("Paris", "Yamoussoukro", "Lima")
    splits: dict[str, list[Question]] = {"train": [], "dev": [], "test": []}
    for split, n in (("train", 6), ("dev", 5), ("test", 10)):
        for i in range(n):
            town, land = f"{split.title()}ville {i}", f"{split.title()}land {i}"
            where, capital = countries[i % 3 if i < 7 else 0], capitals[i % 3]
            splits[split] += [
                Question(f"{split}-P17-{i}", "P17", town, f"Which country is {town} in?", (where, "Earth")),
                Question(f"{split}-P36-{i}", "P36", land, f"What is the capital of {land}?", (capital,)),
            ]
    return splits


@pytest.fixture(scope="session")
def questions() -> Mapping[str, Sequence[Question]]:
    """Two relations: 12 questions in train, 10 in dev, 20 in test; no subject stands in two splits."""
    return _questions()


@pytest.fixture(scope="session")
def write_questions() -> Callable[..., Path]:
    """Writes questions by split as a JSONL file and returns its path."""

    def write(path: Path, splits: Mapping[str, Sequence[Question]]) -> Path:
        rows = [
            {"id": q.id, "relation": q.relation, "subject": q.subject, "question": q.text}
            | {"answers": list(q.answers)}
            | ({} if split == "all" else {"split": split})
            for split, asked in splits.items()
            for q in asked
        ]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory, write_questions: Callable[..., Path]) -> Path:
    """The file of `questions`; only to be read."""
    return write_questions(tmp_path_factory.mktemp("data") / "facts.jsonl", _questions())


@pytest.fixture
def serving() -> FakeEngine:
    """An engine that knows every second of the test questions."""
    return FakeEngine({q.text: q.answers[0] for q in _questions()["test"][::2]})


@pytest.fixture
def log() -> Log:
    """A progress that remembers its phases, starts and units."""
    return Log()


@dataclass(frozen=True)
class Experiment:
    """A store with a split run and a mix run of the tiny model, which knows half of the questions."""

    store: Store
    serving: FakeEngine
    split_run: str
    mix_run: str


@pytest.fixture(scope="session")
def mixed_once(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, data_file: Path) -> Experiment:
    """Mixtures D_0, D_50 and D_100 of four questions each; dev has 10 questions, test 20; only to be read."""
    folder = tmp_path_factory.mktemp("mixed")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MORFI_CACHE", str(folder / "cache"))
        return make_experiment(folder, tiny_model, data_file)


@pytest.fixture
def experiment(mixed_once: Experiment, isolated_cache: Path, tmp_path: Path) -> Experiment:
    """The experiment of `mixed_once` in a database of its own, with an engine of its own."""
    shutil.copyfile(mixed_once.store.path, tmp_path / "experiment.duckdb")
    return replace(
        mixed_once,
        store=Store(tmp_path / "experiment.duckdb"),
        serving=FakeEngine(mixed_once.serving.known),
    )


@pytest.fixture(scope="session")
def experiment_maker() -> Callable[[Path, Path, Path], Experiment]:
    """Makes the experiment with another model."""
    return make_experiment


def make_experiment(folder: Path, model: Path, data: Path) -> Experiment:
    """The experiment, with its database in `folder`."""
    from morfi.evaluation.split import SplitConfig, run_split
    from morfi.training.mix import run_mix
    from morfi.training.mixtures import MixConfig

    store = Store(folder / "experiment.duckdb")
    # Two of every four, for the relations take turns.
    known = [q for asked in _questions().values() for i, q in enumerate(asked) if i % 4 < 2]
    serving = FakeEngine({question.text: question.answers[0] for question in known})
    config = SplitConfig(str(model), data=str(data), n_ex=1, shots=2, samples=0, batch=16)
    split_run = run_split(config, store, serving, Log(), new=False, command="morfi split")
    mixed = MixConfig(split_run, levels=(0, 50, 100), size=4)
    mix_run = run_mix(mixed, store, Log(), new=False, command="morfi mix").run_id
    return Experiment(store, serving, split_run, mix_run)


def make_trained(folder: Path, model: Path, data: Path) -> tuple[Experiment, str]:
    """The experiment in `folder` with a train run of one epoch, and that run's id."""
    from morfi.training.train import run_train

    given = {"epochs": (1,), "rank": 2, "alpha": 4.0, "lr": 1e-2, "batch": 2, "micro_batch": 2}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MORFI_CACHE", str(folder / "cache"))
        made = make_experiment(folder, model, data)
        run_id = run_train(
            given, made.mix_run, made.store, folder / "out", Log(), new=False, command="morfi train"
        )
    return made, run_id


@pytest.fixture(scope="session")
def train_experiment() -> Callable[[Path, Path, Path], tuple[Experiment, str]]:
    """Makes a trained experiment in a folder, of a model and a question file."""
    return make_trained


@pytest.fixture(scope="session")
def new_experiment() -> Callable[[Path, Path, Path], Experiment]:
    """Makes the experiment of any model; its arguments are those of `make_experiment`."""
    return make_experiment


@pytest.fixture(scope="session")
def new_log() -> Callable[[], Log]:
    """Makes a progress that remembers, for fixtures of a wider scope."""
    return Log


@pytest.fixture(scope="session")
def trained_once(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, data_file: Path
) -> tuple[Experiment, str]:
    """The experiment with a train run of one epoch, and that run's id; only to be read."""
    return make_trained(tmp_path_factory.mktemp("trained"), tiny_model, data_file)


@pytest.fixture
def own_experiment(trained_once: tuple[Any, str], isolated_cache: Path, tmp_path: Path, serving: Any) -> Any:
    """The trained experiment in a database of its own, with an engine of its own; and its train run."""
    made, run_id = trained_once
    shutil.copyfile(made.store.path, tmp_path / "morfi.duckdb")
    own = replace(made, store=Store(tmp_path / "morfi.duckdb"), serving=serving)
    return own, run_id


@pytest.fixture
def identity_sae(tmp_path: Path) -> Path:
    """An SAE of width 8 after layer 1: latents 0 to 7 are the dimensions, 8 to 15 their negatives."""
    return save_identity_sae(tmp_path / "sae")


def save_identity_sae(folder: Path) -> Path:
    """Saves the SAE of `identity_sae` in `folder`."""
    import torch
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.saes.standard_sae import StandardSAE, StandardSAEConfig

    config = StandardSAEConfig(d_in=8, d_sae=16, metadata=SAEMetadata(hook_name="blocks.1.hook_resid_post"))
    made = StandardSAE(config)
    with torch.no_grad():
        made.W_enc.copy_(torch.cat([torch.eye(8), -torch.eye(8)], 1))
        made.W_dec.copy_(made.W_enc.T)
        made.b_enc.zero_()
        made.b_dec.zero_()
    made.save_model(folder)
    return folder


@pytest.fixture(scope="session")
def save_sae() -> Callable[[Path], Path]:
    """Saves the SAE of `identity_sae` in a folder."""
    return save_identity_sae


@pytest.fixture
def find_run(own_experiment: Any, tmp_path: Path, log: Any, identity_sae: Path) -> tuple[Any, str]:
    """A store, and a find run in it, of activations after layer 1; layer 0 was captured too."""
    experiment, train_run = own_experiment
    found = make_find_run(experiment.store, train_run, experiment.serving, tmp_path / "out", identity_sae)
    return experiment.store, found


def make_find_run(store: Store, train_run: str, serving: FakeEngine, out: Path, sae: Path) -> str:
    """A find run of all checkpoints of a train run, captured by the fake engine."""
    from morfi.latents.capture import CaptureConfig, run_capture
    from morfi.latents.find import FindConfig, run_find

    wanted, log = CaptureConfig(train_run, (0, 1)), Log()
    captured = run_capture(wanted, store, serving, out, log, new=False, command="")
    config = FindConfig(captured.run_id, str(sae), method="bootstrap", resamples=20)
    return run_find(config, store, log, new=False, command="")


@pytest.fixture(scope="session")
def found_once(
    trained_once: tuple[Experiment, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Store, str]:
    """The trained experiment with a find run, and that run's id; only to be read."""
    made, train_run = trained_once
    folder = tmp_path_factory.mktemp("found")
    shutil.copyfile(made.store.path, folder / "morfi.duckdb")
    store = Store(folder / "morfi.duckdb")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MORFI_CACHE", str(folder / "cache"))
        sae = save_identity_sae(folder / "sae")
        return store, make_find_run(store, train_run, FakeEngine({}), folder / "out", sae)


@pytest.fixture
def steerable(found_once: tuple[Store, str], isolated_cache: Path, tmp_path: Path) -> tuple[Store, str]:
    """A store of its own with a find run, as `found_once`, and that run's id."""
    store, find_run = found_once
    shutil.copyfile(store.path, tmp_path / "morfi.duckdb")
    return Store(tmp_path / "morfi.duckdb"), find_run


@pytest.fixture
def knowing(trained_once: Any, serving: Any, questions: Any) -> Any:
    """An engine whose base model and M_0 know half of the questions, M_100 what steering brings back.

    That is done by latent 0, which rises, when it is steered down (delta_u points the same way), and by
    latent 0 clamped to 0.
    """
    from morfi.engine.steering import Latent

    known: dict[str, str] = dict(trained_once[0].serving.known)
    serving.known = known
    place = {text: i for i, text in enumerate(known)}

    def answers(question: str, wanted: Sequence[Steering], served: str) -> str | None:
        if served != "M_100":
            return None
        down = 0.0
        for one in wanted:
            if isinstance(one.direction, Latent):
                down -= 9.0 * (one.direction.index == 0 and one.strength == 0)
            elif one.operation == "add":
                along = float(serving.registered[one.direction].vector[0])
                down += one.strength * along if abs(along) > 0.7 else 0.0
        if down < 2 * BRINGS_BACK or (down < BRINGS_BACK and place.get(question, 0) % 2):
            return known.get(question, "no idea")
        return "no idea"

    serving.answers = answers
    return serving


@pytest.fixture
def steer(steerable: tuple[Any, str], knowing: Any, log: Any) -> Callable[..., str]:
    """Steers M_100 with few baselines and returns the run; options as of `SteerConfig`."""
    from morfi.interventions import SteerConfig, run_steer

    store, find_id = steerable

    def run(*, new: bool = False, latents: str = find_id, ckpt: str = "M_100", **options: Any) -> str:
        few: dict[str, Any] = {"controls": 2, "random": 1, "batch": 16}
        if options.get("op", "add") == "add":
            few["alphas"] = (-2.0, -1.0, 1.0)
        config = SteerConfig(latents, ckpt, **{**few, **options})
        return run_steer(config, store, knowing, log, new=new, command="morfi steer")

    return run


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the hub's repositories as SAELens sees them."""
    from huggingface_hub.errors import EntryNotFoundError
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
    from sae_releases import D_MODEL, D_SAE, GEMMA
    from safetensors.torch import load_file

    def fetch(repo_id: str, filename: str, *, subfolder: str | None = None, **_: Any) -> str:
        path = tmp_path / repo_id / (subfolder or "") / filename
        if not path.is_file():
            raise EntryNotFoundError(f"no {filename}")
        return str(path)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        return {name: list(one.shape) for name, one in load_file(fetch(repo_id, filename)).items()}

    monkeypatch.setattr(loaders, "hf_hub_download", fetch)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)
    # The sizes of Gemma's SAEs stand in SAELens, not in the release's files.
    gemma = get_pretrained_saes_directory()[GEMMA.partition(":")[0]]
    monkeypatch.setattr(gemma, "config_overrides", {"d_in": D_MODEL, "d_sae": D_SAE})
    return tmp_path
