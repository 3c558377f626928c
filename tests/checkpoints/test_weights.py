from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from morfi.cache import Cache
from morfi.checkpoints.weights import (
    INDEX,
    SINGLE,
    is_finite,
    open_file,
    open_model_weights,
    read_json,
    write_weights,
)
from morfi.errors import InputError

TENSORS = {
    "b": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "a": torch.tensor([1.5, -2.0]),
    "n": torch.tensor(7),
    "h": torch.ones(2, 2, dtype=torch.float16),
    "e": torch.empty(0, 4),
}


def save(directory: Path, tensors: dict[str, torch.Tensor] = TENSORS, shard_bytes: int = 1 << 30) -> Path:
    directory.mkdir(exist_ok=True)
    write_weights(directory, tensors.items(), shard_bytes)
    return directory


def test_written_weights_are_read_back_unchanged_in_one_file_or_many(tmp_path: Path) -> None:
    for shard_bytes, n_files in ((1 << 30, 1), (20, 2), (1, 5)):
        directory = save(tmp_path / str(shard_bytes), shard_bytes=shard_bytes)
        weights = open_model_weights(directory)
        read = dict(weights)
        assert len(weights.shards()) == len(list(directory.glob("*.safetensors"))) == n_files
        assert set(read) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert read[name].dtype == tensor.dtype
            assert torch.equal(read[name], tensor)
            assert weights.tensors[name].shape == tuple(tensor.shape)
            assert torch.equal(weights.tensor(name), tensor)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(sorted(TENSORS)), shard_bytes=st.integers(1, 60))
def test_the_hash_depends_on_no_order_place_or_sharding(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], shard_bytes: int
) -> None:
    root = tmp_path_factory.mktemp("hash")
    here = save(root / "here", {name: TENSORS[name] for name in order}, shard_bytes)
    there = save(root / "there")
    assert open_model_weights(here).sha256() == open_model_weights(there).sha256()


@pytest.mark.parametrize(
    "changed",
    [
        {"a": torch.tensor([1.5, -2.0001])},
        {"a": torch.tensor([[1.5, -2.0]])},
        {"a": torch.tensor([1.5, -2.0], dtype=torch.float64)},
        {"h": torch.ones(2, 2, dtype=torch.bfloat16)},
        {"c": torch.zeros(1)},
    ],
    ids=["value", "shape", "dtype", "half", "name"],
)
def test_the_hash_sees_every_change(tmp_path: Path, changed: dict[str, torch.Tensor]) -> None:
    one = open_model_weights(save(tmp_path / "one")).sha256()
    assert open_model_weights(save(tmp_path / "two", {**TENSORS, **changed})).sha256() != one


def test_the_hash_of_equal_bytes_under_exchanged_names_differs(tmp_path: Path) -> None:
    one = save(tmp_path / "one", {"x": torch.zeros(2), "y": torch.ones(2)})
    two = save(tmp_path / "two", {"y": torch.zeros(2), "x": torch.ones(2)})
    assert open_model_weights(one).sha256() != open_model_weights(two).sha256()


def test_a_file_is_scanned_once_while_it_stays_the_same(tmp_path: Path) -> None:
    said: list[str] = []
    cache = Cache(tmp_path / "cache")
    directory = save(tmp_path / "model")
    first = open_model_weights(directory).sha256(cache, said.append)
    assert open_model_weights(directory).sha256(cache, said.append) == first
    assert said == [f"checking {SINGLE}"]
    save(directory, {**TENSORS, "a": torch.tensor([2.5, -2.0])})
    assert open_model_weights(directory).sha256(cache, said.append) != first
    assert len(said) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_number_that_is_not_finite_is_refused_by_file_and_tensor(
    tmp_path: Path, bad: float, dtype: torch.dtype
) -> None:
    weights = {**TENSORS, "x.weight": torch.ones(3, 5, dtype=dtype).index_fill(0, torch.tensor([2]), bad)}
    cache = Cache(tmp_path / "cache")
    for _ in range(2):
        with pytest.raises(InputError, match=rf"model/{SINGLE}: the tensor x\.weight holds NaN or infinity"):
            open_model_weights(save(tmp_path / "model", weights)).sha256(cache)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(width=16, allow_nan=True, allow_infinity=True), max_size=40),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_finite_is_what_every_element_is(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values).to(dtype)
    assert is_finite(tensor) == all(bool(torch.isfinite(value)) for value in tensor)


def test_numbers_whose_sum_overflows_are_still_finite() -> None:
    assert is_finite(torch.full((4,), 3e38))
    assert not is_finite(torch.tensor([float("inf"), float("-inf")]))


def test_weights_in_memory_stay_what_they_were_when_the_file_changes(tmp_path: Path) -> None:
    directory = save(tmp_path / "model")
    before = open_model_weights(directory)
    held = before.in_memory()
    sha256 = before.sha256()
    changed = {name: tensor + 1 for name, tensor in TENSORS.items()}
    with (directory / SINGLE).open("r+b") as file:  # in place, under whatever maps the file
        save(tmp_path / "other", changed)
        file.write((tmp_path / "other" / SINGLE).read_bytes())
    assert open_model_weights(directory).sha256() != sha256
    assert held.sha256() == held.sha256(Cache(tmp_path / "cache")) == sha256
    for name, tensor in TENSORS.items():
        assert torch.equal(held.tensor(name), tensor)


def test_weights_in_memory_with_a_number_that_is_not_finite_are_refused(tmp_path: Path) -> None:
    held = open_model_weights(save(tmp_path / "m", {"x": torch.tensor([1.0, float("nan")])})).in_memory()
    with pytest.raises(InputError, match="the tensor x holds NaN or infinity"):
        held.sha256()


def test_an_8_bit_float_is_scanned_as_well(tmp_path: Path) -> None:
    good = torch.ones(4).to(torch.float8_e4m3fn)
    bad = torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)
    assert len(open_model_weights(save(tmp_path / "good", {"x": good})).sha256()) == 64
    with pytest.raises(InputError, match="tensor x holds NaN"):
        open_model_weights(save(tmp_path / "bad", {"x": bad})).sha256()


def header(description: object, data: bytes = b"") -> bytes:
    text = description if isinstance(description, bytes) else json.dumps(description).encode()
    return struct.pack("<Q", len(text)) + text + data


OVERLAP = {
    "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
}
BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda whole: b"",
    "short header": lambda whole: whole[:20],
    "truncated data": lambda whole: whole[:-1],
    "trailing data": lambda whole: whole + b"x",
    "absurd header length": lambda whole: struct.pack("<Q", 1 << 62) + whole[8:],
    "not json": lambda whole: header(b"{nonsense"),
    "overlapping tensors": lambda whole: header(OVERLAP, bytes(6)),
    "shape beyond data": lambda whole: header(
        {"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "unknown dtype": lambda whole: header(
        {"a": {"dtype": "Q4", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)
    ),
    "html": lambda whole: b"<!doctype html><html>404</html>",
    "pickle": lambda whole: b"\x80\x02}q\x00.",
}


@pytest.mark.parametrize("breaking", BROKEN.values(), ids=BROKEN)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, breaking: Callable[[bytes], bytes]) -> None:
    path = save(tmp_path / "model") / SINGLE
    path.write_bytes(breaking(path.read_bytes()))
    with pytest.raises(InputError, match=rf"model/{SINGLE} is not a whole safetensors file") as caught:
        open_model_weights(tmp_path / "model")
    assert "\n" not in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 400))
def test_no_truncation_goes_unnoticed(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = save(tmp_path_factory.mktemp("cut")) / SINGLE
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(InputError, match="truncated or corrupt"):
        open_file(path)


def test_a_git_lfs_pointer_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / SINGLE
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n")
    with pytest.raises(InputError, match="git lfs pull"):
        open_file(path)


def test_a_file_without_tensors_is_no_model(tmp_path: Path) -> None:
    save_file({}, tmp_path / SINGLE)
    with pytest.raises(InputError, match="hold no tensors"):
        open_model_weights(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.ckpt"])
def test_pickled_weights_are_refused_by_name_and_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x02c__builtin__\nexit\n.")
    with pytest.raises(InputError, match=rf"{name} holds pickled weights.*never loaded.*save_pretrained"):
        open_model_weights(tmp_path)


def test_pickles_beside_safetensors_are_ignored(tmp_path: Path) -> None:
    (save(tmp_path) / "pytorch_model.bin").write_bytes(b"")
    assert set(open_model_weights(tmp_path).tensors) == set(TENSORS)


@pytest.mark.parametrize("present", [[], ["config.json"], ["other.safetensors"]])
def test_a_folder_without_weights_says_what_is_expected(tmp_path: Path, present: list[str]) -> None:
    for name in present:
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=f"expected {SINGLE} or {INDEX}"):
        open_model_weights(tmp_path)


def test_a_second_set_of_weights_is_refused(tmp_path: Path) -> None:
    save_file(TENSORS, save(tmp_path / "single") / "adapter_model.safetensors")
    save_file(TENSORS, save(tmp_path / "sharded", shard_bytes=1) / SINGLE)
    for directory, stray in (("single", "adapter_model.safetensors"), ("sharded", SINGLE)):
        with pytest.raises(InputError, match=f"{stray} lies beside the weights"):
            open_model_weights(tmp_path / directory)


def test_another_layout_beside_an_index_is_left_alone(tmp_path: Path) -> None:
    save_file(TENSORS, save(tmp_path, shard_bytes=1) / "consolidated.safetensors")
    assert len(open_model_weights(tmp_path).shards()) == 5


def change_index(directory: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((directory / INDEX).read_text())
    change(index["weight_map"])
    (directory / INDEX).write_text(json.dumps(index))


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path: Path) -> None:
    shard = open_model_weights(save(tmp_path / "0", shard_bytes=20)).tensors["a"].shard.name
    cases: list[tuple[Callable[[dict[str, str]], object], str]] = [
        (lambda names: names.pop("n"), r"holds the tensor n, which .* puts nowhere"),
        (lambda names: names.update(n=shard), r"holds the tensor n, which .* puts in"),
        (lambda names: names.update(z=shard), rf"{shard} lacks the tensor z"),
        (lambda names: names.update(z="gone.safetensors"), r"gone\.safetensors is missing"),
        (
            lambda names: names.update(z="../elsewhere.safetensors"),
            r"expected a file name in the same folder",
        ),
    ]
    for number, (change, said) in enumerate(cases, 1):
        directory = save(tmp_path / str(number), shard_bytes=20)
        change_index(directory, change)
        with pytest.raises(InputError, match=said):
            open_model_weights(directory)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    open_model_weights(save(tmp_path, shard_bytes=1)).tensors["a"].shard.unlink()
    with pytest.raises(InputError, match=r"model-0000\d-of-00005\.safetensors is missing"):
        open_model_weights(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "\udcff"]
)
def test_a_broken_index_is_refused(tmp_path: Path, content: str) -> None:
    save(tmp_path, shard_bytes=1)
    (tmp_path / INDEX).write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=INDEX):
        open_model_weights(tmp_path)


def test_written_weights_are_as_readable_as_their_folder(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o755)
    assert (save(tmp_path / "shared") / SINGLE).stat().st_mode & 0o777 == 0o644


def test_a_full_disk_is_an_oserror_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"part-0\.safetensors"):
        write_weights(tmp_path / "missing", TENSORS.items())


@pytest.mark.parametrize("content", ["", "nonsense", "[1]", "null"])
def test_what_is_not_a_json_object_is_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"):
        read_json(tmp_path / "config.json")
