"""New weights in a live engine: bit for bit what an engine started on the merged directory computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from inside_weights import parameters
from trained_families import FORMS, LINEAR, Logits, Trained, changed_copy, start

from morfi.checkpoints import resolve, resolve_live, resolve_unmerged
from morfi.engine.protocol import Sampling
from morfi.errors import InputError, MorfiError
from morfi.serve.engine import Engine


@pytest.mark.parametrize("family", list(FORMS))
def test_swapped_weights_give_the_logits_of_an_engine_on_the_merged_directory(
    family: str, trained: Callable[[str], Trained], raw_logits: Callable[[Engine], Logits]
) -> None:
    case = trained(family)
    merged, live = (case.base, *case.merged), (case.base, *case.unmerged)
    expected: list[Logits] = []
    for checkpoint in merged[1:]:
        with start(checkpoint) as engine:
            expected.append(raw_logits(engine))
    with start(case.base) as engine:
        expected.insert(0, raw_logits(engine))
        assert all(a != b for i, a in enumerate(expected) for b in expected[:i])
        for number in (*range(1, len(live)), 0, *range(1, len(live)), 1):
            engine.load_checkpoint(live[number])
            assert engine.checkpoint_sha256 == merged[number].sha256
            assert raw_logits(engine) == expected[number]


@pytest.mark.parametrize("family", [family for family in FORMS if family != "mixtral"])
def test_whole_models_give_the_logits_and_tensors_of_engines_that_were_started_on_them(
    family: str, trained: Callable[[str], Trained], raw_logits: Callable[[Engine], Logits]
) -> None:
    case = trained(family)
    folders = [str(checkpoint.model_dir) for checkpoint in case.merged]
    wholes = [case.base, *(resolve_live(folder, base=case.base) for folder in folders)]
    expected = []
    for folder in (str(case.base.model_dir), *folders):
        with start(resolve(folder, dtype="float32")) as engine:
            expected.append((raw_logits(engine), tensors_of(engine)))
    with start(case.base) as engine:
        for number in (1, 0, *range(1, len(wholes)), 1):
            engine.load_checkpoint(wholes[number])
            assert engine.checkpoint_sha256 == resolve(str(wholes[number].model_dir)).sha256
            logits, tensors = expected[number]
            assert raw_logits(engine) == logits
            for name, tensor in tensors_of(engine).items():
                assert torch.equal(tensor, tensors[name]), name
        engine.load_checkpoint(case.unmerged[0])
        assert raw_logits(engine) == expected[1][0]


def tensors_of(engine: Engine) -> dict[str, torch.Tensor]:
    """Copies of the live model's tensors."""
    return {name: parameter.detach().clone() for name, parameter in parameters(engine).items()}


def test_an_engine_on_an_unknown_checkpoint_takes_no_other(trained: Callable[[str], Trained]) -> None:
    case = trained("llama")
    with Engine(
        case.base.model_dir, dtype="float32", context=64, overrides={"kv_cache_memory_bytes": 1 << 24}
    ) as engine:
        assert engine.checkpoint_sha256 is None
        with pytest.raises(InputError, match="was not started on a checkpoint that is known"):
            engine.load_checkpoint(case.base)
        assert engine.generate([[3, 4]], Sampling())


def test_an_engine_started_on_an_unmerged_adapter_serves_it(
    trained: Callable[[str], Trained], raw_logits: Callable[[Engine], Logits]
) -> None:
    case = trained("llama")
    with start(case.unmerged[0]) as engine:
        assert engine.checkpoint_sha256 == case.merged[0].sha256
        started = raw_logits(engine)
        engine.load_checkpoint(case.base)
        assert raw_logits(engine) != started
        engine.load_checkpoint(case.unmerged[0])
        assert raw_logits(engine) == started


@pytest.mark.slow  # compiling takes minutes
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_compiled_engine_computes_with_the_new_weights(
    family: str, trained: Callable[[str], Trained], raw_logits: Callable[[Engine], Logits]
) -> None:
    case = trained(family)
    expected = []
    for checkpoint in case.merged[:2]:
        with start(checkpoint, enforce_eager=False) as engine:
            expected.append(raw_logits(engine))
    assert expected[0] != expected[1]
    with start(case.base, enforce_eager=False) as engine:
        for number in (0, 1, 0):
            engine.load_checkpoint(case.unmerged[number])
            assert raw_logits(engine) == expected[number]


@pytest.mark.slow  # two worker processes
def test_worker_processes_take_new_weights(
    trained: Callable[[str], Trained],
    raw_logits: Callable[[Engine], Logits],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    case = trained("llama")
    with start(case.merged[0], distributed_executor_backend="mp") as engine:
        expected = raw_logits(engine)
    with start(case.base, distributed_executor_backend="mp") as engine:
        assert raw_logits(engine) != expected
        with pytest.raises(InputError, match="cannot be read"):
            engine.load_checkpoint(replace(case.unmerged[1], adapter_dir=tmp_path / "gone"))
        engine.load_checkpoint(case.unmerged[1])
        assert raw_logits(engine) != expected
        damaged = changed_copy(case.unmerged[0], tmp_path / "huge", lambda tensor: tensor.fill_(3e38))
        with pytest.raises(MorfiError, match="holds NaN or infinity"):
            engine.load_checkpoint(resolve_unmerged(str(damaged), base=case.base))
        with pytest.raises(MorfiError, match="holds no whole checkpoint"):
            engine.generate([[3, 4, 5]], Sampling())
        engine.load_checkpoint(case.unmerged[0])
        assert raw_logits(engine) == expected


def test_smollm2_with_new_weights_is_smollm2_started_on_the_merged_directory(
    smollm2_dir: Path, train: Callable[..., Path], raw_logits: Callable[..., Logits], tmp_path: Path
) -> None:
    base = resolve(str(smollm2_dir), dtype="float32")
    case = Trained(base, (train(tmp_path / "a", smollm2_dir, scale=0.02, r=8, target_modules=LINEAR),))
    with start(case.merged[0], kv_cache_memory_bytes=1 << 28) as engine:
        expected = raw_logits(engine, n_top=50)
    with start(case.base, kv_cache_memory_bytes=1 << 28) as engine:
        before = raw_logits(engine, n_top=50)
        assert before != expected
        engine.load_checkpoint(case.unmerged[0])
        assert raw_logits(engine, n_top=50) == expected
        engine.load_checkpoint(case.base)
        assert raw_logits(engine, n_top=50) == before
