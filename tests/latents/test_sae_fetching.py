"""Files of SAEs that may be pickles, are cut short, or that the hub does not give."""

from __future__ import annotations

import inspect
import json
import logging
import pickle
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import huggingface_hub.errors
import numpy as np
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
from sae_releases import GEMMA, LLAMA, MISTRAL, WRITERS, repository, write_gemma, write_mistral

from morfi.errors import InputError
from morfi.latents.sae import load_sae


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_an_npz_with_pickled_objects_is_refused_unread(hub: Path, tmp_path: Path) -> None:
    write_gemma(hub / repository(GEMMA), b_enc=np.array([Bomb(tmp_path / "boom")], dtype=object))
    with pytest.raises(InputError, match="allow_pickle=False"):
        load_sae(GEMMA)
    assert not (tmp_path / "boom").exists()


def test_a_pickle_under_another_name_is_refused_unread(hub: Path, tmp_path: Path) -> None:
    write_gemma(hub / repository(GEMMA))
    write_mistral(hub / repository(MISTRAL))
    for source, name in ((GEMMA, "params.npz"), (MISTRAL, "sae_weights.safetensors")):
        (path,) = (hub / repository(source)).rglob(name)
        path.write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
        with pytest.raises(InputError, match="SAELens could not load"):
            load_sae(source)
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("source", [LLAMA, GEMMA, MISTRAL])
@pytest.mark.parametrize("keep", [0, 200])
def test_files_cut_short_are_refused(hub: Path, source: str, keep: int) -> None:
    WRITERS[source](hub / repository(source))
    (path,) = (
        path for path in (hub / repository(source)).rglob("*") if path.suffix in (".npz", ".safetensors")
    )
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match="SAELens could not load"):
        load_sae(source)


PICKLED = sorted(
    name
    for name, loader in loaders.NAMED_PRETRAINED_SAE_LOADERS.items()
    if "torch.load" in inspect.getsource(loader)
)
# What the loaders of pickles read in the JSON beside them.
CONFIG = {
    "act_size": 8,
    "dict_size": 16,
    "act_name": "blocks.1.hook_resid_post",
    "trainer": {
        "layer": 1,
        "dict_class": "AutoEncoder",
        "activation_dim": 8,
        "dict_size": 16,
        "lm_name": "a/b",
    },
    "buffer": {"ctx_len": 4},
}


def test_saelens_has_loaders_that_unpickle() -> None:
    assert "goodfire" in PICKLED


@pytest.mark.parametrize("loader", PICKLED)
def test_a_release_of_pickles_is_refused_before_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loader: str
) -> None:
    known = get_pretrained_saes_directory().values()
    release = next(each for each in known if each.conversion_func == loader)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    fetched: list[str] = []

    def fetch(repo_id: str, filename: str, **_: Any) -> str:
        fetched.append(filename)
        return str(tmp_path / "config.json")

    monkeypatch.setattr(loaders, "hf_hub_download", fetch)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(InputError, match="may be a pickle, which can run code") as caught:
        load_sae(f"{release.release}:{next(iter(release.saes_map))}")
    assert "\n" not in str(caught.value)
    assert all(Path(name).suffix == ".json" for name in fetched)
    assert loaders.hf_hub_download is fetch


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("An error happened\nwhile trying to locate the file"),
        EntryNotFoundError("no such file"),
        huggingface_hub.errors.HTTPError("cut off"),  # type: ignore[attr-defined]  # its client's
        ConnectionError("refused"),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_hub_does_not_give_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fetch(*_: Any, **__: Any) -> str:
        # What it says of every try would be many lines.
        assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
        raise error

    monkeypatch.setattr(loaders, "hf_hub_download", fetch)
    with pytest.raises(InputError, match="could not be fetched from the hub") as caught:
        load_sae(LLAMA)
    message = str(caught.value)
    assert message.startswith(LLAMA)
    assert "\n" not in message
    assert 'hf download fnlp/Llama3_1-8B-Base-LXR-8x --include "Llama3_1-8B-Base-L15R-8x/*"' in message


def test_offline_with_an_empty_cache_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    for source in (LLAMA, GEMMA, MISTRAL):
        with pytest.raises(InputError, match="could not be fetched from the hub") as caught:
            load_sae(source)
        assert "\n" not in str(caught.value)
