"""Shared: the hub's repositories in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


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
