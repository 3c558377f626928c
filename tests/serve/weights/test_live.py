"""New weights in one live engine: those that fit, those that are refused, and loads that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_path import call
from inside_weights import load_beside_a_request, parameters, weight_version
from safetensors.torch import load_file, save_file
from trained_families import LINEAR, Logits, Trained, changed_copy, start

from morfi.checkpoints import Checkpoint, resolve_unmerged
from morfi.checkpoints.lora import merged_tensors
from morfi.engine.protocol import Sampling
from morfi.errors import InputError, MorfiError
from morfi.serve.engine import Engine
from morfi.serve.weights import loading, swap


# In one process an engine that ends takes down the others': no test starts one beside the live one.
@pytest.fixture(scope="module")
def live(trained: Callable[[str], Trained]) -> Iterator[Engine]:
    """One engine on the untied Llama for all tests that load into it."""
    with start(trained("llama").base) as engine:
        yield engine


@pytest.fixture
def llama(live: Engine, trained: Callable[[str], Trained]) -> Trained:
    """The Llama's adapters, with the first of them in the live engine."""
    case = trained("llama")
    live.load_checkpoint(case.unmerged[0])
    return case


def test_vllms_own_reload_gives_the_same_weights(
    live: Engine,
    llama: Trained,
    raw_logits: Callable[[Engine], Logits],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoints = [llama.unmerged[2], llama.unmerged[1], llama.base]
    by_module = []
    for checkpoint in checkpoints:
        live.load_checkpoint(checkpoint)
        by_module.append(raw_logits(live))
    monkeypatch.setattr(loading, "BY_MODULE", frozenset())
    for checkpoint, expected in zip(checkpoints, by_module, strict=True):
        live.load_checkpoint(checkpoint)
        assert raw_logits(live) == expected
    monkeypatch.undo()
    for checkpoint, expected in zip(checkpoints, by_module, strict=True):
        live.load_checkpoint(checkpoint)
        assert raw_logits(live) == expected


def test_the_first_answer_after_a_swap_reuses_no_prefix_of_the_old_weights(
    either: Engine, trained: Callable[[str], Trained]
) -> None:
    case, prompts = trained("llama"), [list(range(3, 100))]
    either.generate(prompts, Sampling())
    assert either.generate(prompts, Sampling())[0][0].n_cached_tokens > 0
    either.load_checkpoint(case.unmerged[1])
    assert either.generate(prompts, Sampling())[0][0].n_cached_tokens == 0


def test_the_weights_version_is_the_checkpoints_sha256(
    either: Engine, trained: Callable[[str], Trained]
) -> None:
    case = trained("llama")
    for checkpoint in (*case.unmerged, case.base):
        either.load_checkpoint(checkpoint)
        assert call(either, weight_version) == checkpoint.sha256 == either.checkpoint_sha256


def test_a_swap_while_a_request_runs_is_refused_and_right_after_its_abort_is_not(
    either: Engine, trained: Callable[[str], Trained], raw_logits: Callable[[Engine], Logits]
) -> None:
    case = trained("llama")
    either.load_checkpoint(case.base)
    expected = raw_logits(either)
    either.load_checkpoint(case.unmerged[0])
    said = call(either, load_beside_a_request, case.base)
    assert "cannot be loaded while requests are running" in said
    assert either.checkpoint_sha256 == case.unmerged[0].sha256
    either.load_checkpoint(case.base)
    assert raw_logits(either) == expected


def other_width(case: Trained, made: Path, train: Callable[..., Path]) -> Checkpoint:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(case.base.model_dir)
    config.intermediate_size = 32
    LlamaForCausalLM(config).save_pretrained(made / "narrow")
    adapter = train(made / "adapter", made / "narrow", target_modules=LINEAR)
    config_file = adapter / "adapter_config.json"
    config_file.write_text(config_file.read_text().replace(str(made / "narrow"), "elsewhere"))
    return resolve_unmerged(str(adapter), base=case.base)


def changed_on_disk(case: Trained, made: Path, train: Callable[..., Path]) -> Checkpoint:
    directory = changed_copy(case.unmerged[0], made / "copy", lambda tensor: None)
    checkpoint = resolve_unmerged(str(directory), base=case.base)
    tensors = load_file(directory / "adapter_model.safetensors")
    next(iter(tensors.values())).mul_(2)
    save_file(tensors, directory / "adapter_model.safetensors")
    return checkpoint


def with_more_tokens(case: Trained, made: Path, train: Callable[..., Path]) -> Checkpoint:
    adapter = train(made / "a", case.base.model_dir, target_modules=["q_proj"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    embedding = torch.randn(300, 64)
    whole = {
        f"base_model.model.{name}.weight": embedding.clone() for name in ("lm_head", "model.embed_tokens")
    }
    save_file(tensors | whole, adapter / "adapter_model.safetensors")
    return resolve_unmerged(str(adapter), base=case.base)


REFUSED: list[tuple[Callable[[Trained, Path, Callable[..., Path]], Checkpoint], str]] = [
    (other_width, "has the shape .* give the adapter's own base"),
    (changed_on_disk, "has changed since it was checked"),
    (with_more_tokens, "changes the number of tokens .* to 300"),
    (lambda case, made, train: case.merged[1], "does not belong to the model this engine was started on"),
    (
        lambda case, made, train: replace(case.unmerged[1], base_sha256="0" * 64),
        "does not belong to the model",
    ),
    (
        lambda case, made, train: replace(case.unmerged[1], dtype="bfloat16"),
        "in bfloat16, but the engine runs in float32",
    ),
    (lambda case, made, train: replace(case.unmerged[1], adapter_dir=made / "gone"), "cannot be read"),
]


@pytest.mark.parametrize(("wrong", "message"), REFUSED)
def test_what_does_not_fit_is_refused_and_the_old_checkpoint_stays(
    *,
    wrong: Callable[[Trained, Path, Callable[..., Path]], Checkpoint],
    message: str,
    live: Engine,
    llama: Trained,
    raw_logits: Callable[[Engine], Logits],
    train: Callable[..., Path],
    tmp_path: Path,
) -> None:
    before = raw_logits(live)
    with pytest.raises(InputError, match=message):
        live.load_checkpoint(wrong(llama, tmp_path, train))
    assert live.checkpoint_sha256 == llama.unmerged[0].sha256
    assert raw_logits(live) == before


def test_a_base_that_changed_under_the_engine_is_refused(live: Engine, llama: Trained) -> None:
    checkpoint = llama.unmerged[1]
    file = llama.base.model_dir / "model.safetensors"
    original = file.read_bytes()
    tensors = load_file(file)
    tensors["model.norm.weight"].add_(1)
    try:
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(InputError, match="has changed since the engine started on it"):
            live.load_checkpoint(checkpoint)
        with pytest.raises(InputError, match="does not hold the model llama that is served"):
            resolve_unmerged(str(llama.adapters[1]), base=llama.base)
    finally:
        file.write_bytes(original)
    live.load_checkpoint(checkpoint)


def test_untying_a_tied_base_is_refused_by_name(
    trained: Callable[[str], Trained], train: Callable[..., Path], tmp_path: Path
) -> None:
    case = trained("llama-tied")
    adapter = train(
        tmp_path / "a", case.base.model_dir, target_modules=["q_proj"], modules_to_save=["lm_head"]
    )
    source = swap.Source(
        case.base.model_dir,
        case.base.sha256,
        "float32",
        adapter,
        str(resolve_unmerged(str(adapter), base=case.base).adapter_sha256),
    )
    with pytest.raises(InputError, match="an output head of its own, which the base ties"):
        swap.LiveModel(runner=None).prepare(source)


@pytest.fixture(params=["by module", "by vLLM"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each of the two ways to load."""
    if request.param == "by vLLM":
        monkeypatch.setattr(loading, "BY_MODULE", frozenset())
    return str(request.param)


def assert_refuses_until_loaded(
    engine: Engine, case: Trained, raw_logits: Callable[[Engine], Logits], expected: Logits
) -> None:
    assert engine.checkpoint_sha256 is None
    with pytest.raises(MorfiError, match="holds no whole checkpoint after a failed load"):
        engine.generate([[3, 4, 5]], Sampling())
    # A refusal changes nothing: it is still broken.
    with pytest.raises(InputError):
        engine.load_checkpoint(replace(case.unmerged[1], dtype="bfloat16"))
    with pytest.raises(MorfiError, match="holds no whole checkpoint"):
        engine.generate([[3, 4, 5]], Sampling())
    engine.load_checkpoint(case.unmerged[1])
    assert raw_logits(engine) == expected


def test_a_merge_that_overflows_leaves_an_engine_that_refuses_until_a_load_succeeds(
    path: str,
    live: Engine,
    llama: Trained,
    raw_logits: Callable[[Engine], Logits],
    tmp_path: Path,
) -> None:
    live.load_checkpoint(llama.unmerged[1])
    expected = raw_logits(live)
    live.load_checkpoint(llama.unmerged[0])

    directory = changed_copy(llama.unmerged[0], tmp_path / "huge", lambda tensor: tensor.fill_(3e38))
    with pytest.raises(MorfiError, match=r"layers\.1\..* holds NaN or infinity") as caught:
        live.load_checkpoint(resolve_unmerged(str(directory), base=llama.base))
    assert not isinstance(caught.value, InputError)
    assert_refuses_until_loaded(live, llama, raw_logits, expected)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("a kernel failed"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [1, 4, 9])
def test_a_load_that_stops_half_way_is_never_served(
    *,
    path: str,
    after: int,
    error: BaseException,
    live: Engine,
    llama: Trained,
    raw_logits: Callable[[Engine], Logits],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live.load_checkpoint(llama.unmerged[1])
    expected = raw_logits(live)
    live.load_checkpoint(llama.unmerged[2])

    def interrupted(*arguments: Any) -> Iterator[Any]:
        for number, pair in enumerate(merged_tensors(*arguments)):
            if number == after:
                raise error
            yield pair

    with monkeypatch.context() as patch:
        patch.setattr(swap, "merged_tensors", interrupted)
        stops = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else MorfiError
        with pytest.raises(stops):
            live.load_checkpoint(llama.unmerged[0])
    assert_refuses_until_loaded(live, llama, raw_logits, expected)


def test_swaps_leave_no_weights_behind(live: Engine, llama: Trained) -> None:
    def n_elements() -> int:
        return sum(parameter.numel() for parameter in parameters(live).values())

    before = n_elements()
    for checkpoint in (llama.base, *llama.unmerged, llama.base):
        live.load_checkpoint(checkpoint)
        assert n_elements() == before
