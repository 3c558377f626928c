"""Named vectors, from safetensors: what is read, and what is refused in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

from morfi.errors import InputError
from morfi.serve.http.vectors import checked, read_vectors, unpacked


def test_vectors_of_any_dtype_are_read_by_name(tmp_path: Path) -> None:
    given = {
        "refusal": torch.tensor([1.0, -2.0]),
        "layers.3@half": torch.tensor([0.5, 4.0], dtype=torch.bfloat16),
        "whole": torch.tensor([1, 2]),
    }
    save_file(given, tmp_path / "vectors.safetensors")
    found = read_vectors(tmp_path / "vectors.safetensors")
    assert {name: one.vector.tolist() for name, one in found.items()} == {
        name: tensor.float().tolist() for name, tensor in given.items()
    }


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (torch.tensor([1.0, float("nan")]), 'vector "v": a direction\'s vector: expected finite'),
        (torch.tensor([1.0, float("inf")]), "NaN or infinity"),
        (torch.zeros(3), "length 0 leads nowhere"),
        (torch.ones(2, 3), r"the shape \(2, 3\), expected \[d_model\]"),
        (torch.ones(0), r"the shape \(0,\), expected \[d_model\]"),
        (torch.ones(3, dtype=torch.bool), "expected real numbers"),
    ],
)
def test_what_leads_nowhere_is_refused_by_name(numbers: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        unpacked(save({"v": numbers}))


@pytest.mark.parametrize("name", ["", "a b", "../up", "a/b", ".up", "x" * 129, "ü"])
def test_names_go_into_addresses_as_they_are(name: str) -> None:
    with pytest.raises(InputError, match="cannot be a vector's name"):
        checked({name: [1.0]})


@pytest.mark.parametrize("data", [b"", b"{}", b"\x80\x04", b"\xff" * 64, save({"v": torch.ones(3)})[:-1]])
def test_bytes_that_are_no_safetensors_are_refused(data: bytes, tmp_path: Path) -> None:
    file = tmp_path / "vectors.safetensors"
    file.write_bytes(data)
    with pytest.raises(InputError, match=f"--vectors {file}: these are not the bytes of a safetensors file"):
        read_vectors(file)


def test_a_file_that_is_not_there_or_is_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_vectors(tmp_path / "none")
    with pytest.raises(InputError, match="no vectors; give one or more"):
        unpacked(save({}))
