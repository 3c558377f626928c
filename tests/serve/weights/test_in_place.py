"""Swaps in place: what is left in every parameter, at its address, is what vLLM's own loader puts there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import LLAMA_LIKE
from gpu_path import call, compute_with_parameters
from inside_weights import addresses, is_swapped_in_place, load_through_vllm, worker_of
from trained_families import FORMS, LINEAR, Logits, Trained, changed_copy, start
from transformers import LlamaConfig, LlamaForCausalLM

from morfi.checkpoints import resolve_unmerged
from morfi.checkpoints.adapters import load_adapter
from morfi.checkpoints.base_room import Room
from morfi.checkpoints.lora import Merge, merged_tensors
from morfi.checkpoints.merge_plan import plan_merge
from morfi.checkpoints.model_files import ModelFiles, open_model
from morfi.checkpoints.weights import TensorEntry
from morfi.engine.protocol import Sampling
from morfi.errors import InputError, MorfiError
from morfi.serve.engine import Engine
from morfi.serve.weights import in_place, places
from morfi.serve.weights.in_place import InPlace
from morfi.serve.weights.loading import all_cores
from morfi.serve.weights.places import places_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rank(tmp_path_factory: pytest.TempPathFactory, starts_vllm: None) -> Iterator[Callable[..., Any]]:
    """Makes vLLM's model of a folder as one of several tensor-parallel workers has it, without content."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import initialize_model

    def make(folder: Path, dtype: str, number: int, n: int) -> Any:
        settings = EngineArgs(
            model=str(folder), tokenizer=str(folder), dtype=dtype, max_model_len=64, enforce_eager=True
        ).create_engine_config()
        with set_current_vllm_config(settings):
            if not parallel_state.model_parallel_is_initialized():
                address = tmp_path_factory.mktemp("group") / "address"
                parallel_state.init_distributed_environment(1, 0, f"file://{address}", 0, "gloo")
                parallel_state.initialize_model_parallel(1)
            group = parallel_state.get_tp_group()
            group.world_size, group.rank_in_group = n, number
            before = torch.get_default_dtype()
            torch.set_default_dtype(getattr(torch, dtype))
            try:
                return initialize_model(settings)
            finally:
                torch.set_default_dtype(before)
                group.world_size, group.rank_in_group = 1, 0

    yield make
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()


def merge_of(base: ModelFiles, adapter: Path, dtype: str) -> Merge:
    return plan_merge(base, load_adapter(adapter), dtype)


def assert_as_loaded(make: Callable[[], Any], base: ModelFiles, merges: list[Merge]) -> list[bool]:
    """Whether each of `merges` was made in place: then with what vLLM's loader makes of whole tensors."""
    live, loaded = make(), make()
    live.load_weights(iter(base.weights))
    found = places_of(live, base.weights.tensors)
    assert found is not None
    model = InPlace(base.weights, found, CPU, 1)
    addresses = [parameter.data_ptr() for parameter in live.parameters()]
    taken, dirty = [], frozenset[str]()
    for merge in (*merges, None):
        changed = dirty | frozenset(merge.edits if merge is not None else ())
        taken.append(model.takes(changed, dirty, merge))
        if not taken[-1]:
            continue
        model.swap(changed, merge)
        dirty = frozenset(merge.edits if merge is not None else ())
        loaded.load_weights(iter(base.weights if merge is None else merged_tensors(base.weights, merge)))
        for (name, parameter), expected in zip(live.named_parameters(), loaded.parameters(), strict=True):
            assert torch.equal(parameter, expected), name
    assert [parameter.data_ptr() for parameter in live.parameters()] == addresses
    return taken


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        (family, dtype)
        for family in FORMS
        for dtype in ("float32", "bfloat16", "float16")
        if family != "mixtral" and (family, dtype) != ("gemma2", "float16")  # which vLLM refuses
    ],
)
def test_every_rank_holds_its_part_of_the_merged_tensors(
    family: str, dtype: str, trained: Callable[[str], Trained], rank: Callable[..., Any]
) -> None:
    case = trained(family)
    base = open_model(case.base.model_dir)
    merges = [merge_of(base, adapter, dtype) for adapter in case.adapters]
    # DoRA needs whole outputs, of which a rank has a part of the inputs.
    whole = [not load_adapter(adapter).config.get("use_dora") for adapter in case.adapters]
    for n in (1, 2):
        for number in range(n):
            taken = assert_as_loaded(
                lambda number=number, n=n: rank(base.path, dtype, number, n),  # type: ignore[misc]
                base,
                merges,
            )
            assert taken == [n == 1 or one for one in whole] + [True]


def test_more_ranks_than_heads_of_keys_share_them(
    rank: Callable[..., Any],
    train: Callable[..., Path],
    make_tokenizer: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(places, "AT_ONCE", 1000)  # so that matrices are merged in pieces as well
    settings = {**LLAMA_LIKE, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    LlamaForCausalLM(LlamaConfig(**settings)).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    make_tokenizer(adds_bos=False).save_pretrained(tmp_path / "base")
    adapter = train(tmp_path / "adapter", tmp_path / "base", target_modules=LINEAR)
    base = open_model(tmp_path / "base")
    for number in range(4):
        taken = assert_as_loaded(
            lambda number=number: rank(base.path, "bfloat16", number, 4),  # type: ignore[misc]
            base,
            [merge_of(base, adapter, "bfloat16")],
        )
        assert taken == [True, True]


@pytest.fixture(scope="module")
def live(trained: Callable[[str], Trained]) -> Iterator[Engine]:
    """One engine on the untied Llama that computes with its parameters, as all do on a GPU."""
    from vllm.model_executor.layers import utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "dispatch_cpu_unquantized_gemm", compute_with_parameters)
        patch.setattr(in_place, "are_parameters_served", lambda model: True)
        with start(trained("llama").base) as engine:
            yield engine


def test_an_engine_swaps_in_place_and_through_vllms_loader_in_any_order(
    either: Engine,
    trained: Callable[[str], Trained],
    raw_logits: Callable[[Engine], Logits],
    greedy_tokens: Callable[..., list[list[int]]],
) -> None:
    case = trained("llama")
    before = call(either, addresses)
    prompts = [[3, 4, 5], list(range(40, 120))]
    loaded = []
    for live, merged in zip([*case.unmerged, case.base], [*case.merged, case.base], strict=True):
        either.load_checkpoint(live)
        loaded.append(raw_logits(either))
        assert call(either, is_swapped_in_place)
        answers = either.generate(prompts, Sampling(max_tokens=12))
        expected = greedy_tokens(merged.model_dir, prompts, either._newline_ids, max_tokens=12)
        assert [list(one.token_ids) for (one,) in answers] == expected
    assert all(a != b for number, a in enumerate(loaded) for b in loaded[:number])
    for number in (1, 0, 3, 2, 1, 3, 0):
        checkpoint = [*case.unmerged, case.base][number]
        if number in (0, 3):
            call(either, load_through_vllm, checkpoint)
        else:
            either.load_checkpoint(checkpoint)
        assert raw_logits(either) == loaded[number]
    assert call(either, addresses) == before


@pytest.mark.parametrize("room", list(Room))
def test_wherever_the_base_is_kept_the_weights_are_the_same(
    room: Room,
    live: Engine,
    trained: Callable[[str], Trained],
    raw_logits: Callable[[Engine], Logits],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = trained("llama")
    live.load_checkpoint(case.unmerged[2])
    expected = raw_logits(live)
    live.load_checkpoint(case.base)
    monkeypatch.setattr(in_place, "room_for", lambda *_, **__: room)
    del worker_of(live).morfi_live_model
    live.load_checkpoint(case.unmerged[0])
    model = worker_of(live).morfi_live_model.in_place
    assert set(model.rooms.values()) == {room}
    assert bool(model.kept) == (room != Room.FILES)
    live.load_checkpoint(case.unmerged[2])
    assert raw_logits(live) == expected


def test_a_part_that_does_not_hold_the_bases_values_leaves_swaps_to_vllm(
    live: Engine, trained: Callable[[str], Trained], raw_logits: Callable[[Engine], Logits]
) -> None:
    case = trained("llama")
    live.load_checkpoint(case.unmerged[0])
    expected = raw_logits(live)
    live.load_checkpoint(case.base)
    worker = worker_of(live)
    del worker.morfi_live_model
    worker.model_runner.get_model().get_submodule("model.layers.1.mlp.gate_up_proj").weight.data[3, 5] += 1
    live.load_checkpoint(case.unmerged[0])
    assert raw_logits(live) == expected
    assert "model.layers.1.mlp.gate_proj.weight" not in worker.morfi_live_model.in_place.rooms


def test_a_merge_in_place_is_compared_with_the_cpus(live: Engine, trained: Callable[[str], Trained]) -> None:
    case = trained("llama")
    live.load_checkpoint(case.base)
    live.load_checkpoint(case.unmerged[0])
    same = live.compare_merge(case.unmerged[0])
    assert same is not None
    assert (same.different, same.worst) == (0, 0.0)
    assert same.numbers == 2 * (3 * 96 * 64 + 2 * 64 * 64 + 2 * 32 * 64)
    with pytest.raises(InputError, match="is not what is served"):
        live.compare_merge(case.unmerged[1])
    weight = worker_of(live).model_runner.get_model().get_submodule("model.layers.1.mlp.down_proj").weight
    weight.data[3, 5] *= 1 + 1e-4
    wrong = live.compare_merge(case.unmerged[0])
    assert wrong is not None
    assert wrong.different == 1
    assert wrong.worst > 1
    assert wrong.where == "model.layers.1.mlp.down_proj.weight"
    live.load_checkpoint(case.base)


def test_a_swap_in_place_that_fails_is_never_served(
    either: Engine,
    trained: Callable[[str], Trained],
    raw_logits: Callable[[Engine], Logits],
    tmp_path: Path,
) -> None:
    case = trained("llama")
    either.load_checkpoint(case.unmerged[1])
    expected = raw_logits(either)
    huge = changed_copy(case.unmerged[0], tmp_path / "huge", lambda tensor: tensor.fill_(3e38))
    with pytest.raises(MorfiError, match=r"layers\.1\..* holds NaN or infinity"):
        either.load_checkpoint(resolve_unmerged(str(huge), base=case.base))
    with pytest.raises(MorfiError, match="holds no whole checkpoint"):
        either.generate([[3, 4, 5]], Sampling())
    either.load_checkpoint(case.unmerged[1])
    assert raw_logits(either) == expected


@pytest.mark.parametrize(
    ("load", "box"),
    [
        (lambda live, given: live.data.copy_(given), (slice(0, 4), slice(0, 6))),
        (lambda live, given: live.data[1:3].copy_(given[2:].narrow(1, 0, 6)), (slice(2, 4), slice(0, 6))),
        (lambda live, given: live.data[:, :4].T[:].copy_(given[:, :4]), (slice(0, 4), slice(0, 4))),
        (lambda live, given: live.data[:, :4].copy_(given[:, :4].T), (slice(0, 4), slice(0, 4))),
        (lambda live, given: live.data.copy_(given + 1), None),
        (lambda live, given: live.data.copy_(given.reshape(2, 2, 6).transpose(0, 1).reshape(4, 6)), None),
        (lambda live, given: live.data.copy_(given.expand(1, 4, 6)[0, :, [1, 0, 2, 3, 4, 5]]), None),
        (lambda live, given: live.data.copy_(given[:, :1]), None),
        (lambda live, given: live.data.view(8, 3).copy_(given.view(8, 3)), None),
        (lambda live, given: live.data.fill_(given[0, 0].item()), None),
        (lambda live, given: live.data.add_(given), None),
    ],
)
def test_a_place_is_known_only_of_views_that_are_copied(
    load: Callable[[torch.nn.Parameter, torch.Tensor], object], box: tuple[slice, ...] | None
) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4, 6), requires_grad=False)

        def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
            for _, tensor in weights:
                load(self.weight, tensor)

    model = Model()
    found = places_of(model, {"weight": TensorEntry(Path(), "F32", (4, 6))})
    assert torch.equal(model.weight, torch.ones(4, 6))
    if box is None:
        assert found is None
        return
    assert found is not None
    (place,) = found["weight"]
    assert place.box == box
    given = torch.arange(24.0).reshape(4, 6)
    place.live.copy_(given[place.box])
    loaded = Model()
    load(loaded.weight, given)
    assert torch.equal(model.weight, loaded.weight)


def test_beside_a_gpu_vllms_loader_gets_every_core_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = [1]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(12))
    for device, seen in (("meta", [1, 6, 1]), ("cpu", [1, 6, 1])):
        runner = SimpleNamespace(
            get_model=lambda device=device: torch.nn.Linear(2, 2, device=device),
            vllm_config=SimpleNamespace(parallel_config=SimpleNamespace(world_size=2)),
        )
        with all_cores(runner):
            pass
        assert threads == seen
