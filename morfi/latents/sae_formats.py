"""The format of an SAE's files, and what the SAE reads: all that can be known before its tensors are read."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from morfi.errors import InputError

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"  # SAELens'
_SAVE = (
    f"make an SAE of SAELens of its tensors and save it with save_model ({CONFIG} and {WEIGHTS}; "
    "docs/trends.md shows how), then give that folder"
)
_BY_RELEASE = (
    "give it as RELEASE:ID of SAELens' pretrained SAEs, which is read from the hub's cache too "
    f"(docs/trends.md), or {_SAVE}"
)
# Files by which folders of other tools are known, and what to do with such a folder.
_FOREIGN = (
    ("sae.safetensors", "sparsify", _SAVE),
    ("params.npz", "Gemma Scope", _BY_RELEASE),
    ("params.safetensors", "Gemma Scope 2", _BY_RELEASE),
    ("hyperparams.json", "Llama Scope (language-model-saes)", _BY_RELEASE),
    ("ae.pt", "dictionary_learning, a pickle, which can run code when it is read", _SAVE),
    ("conf.yaml", "temporal SAEs", "its latents depend on the tokens before; take another SAE"),
)
_PICKLES = (".pt", ".pth", ".bin", ".pkl")

# The residual stream after layer N by the names of TransformerLens, of its newer bridge and of transformers.
_AFTER = re.compile(r"(?:.*\.)?(?:blocks|layers|h)\.(\d+)(?:\.hook_resid_post|\.hook_out|\.output)?")
_BEFORE = re.compile(r"(?:.*\.)?(?:blocks|layers|h)\.(\d+)(?:\.hook_resid_pre|\.hook_in|\.input)")
# What else SAEs read, by a part of the hook point's name; the first that fits counts.
_ELSEWHERE = (
    ("embed", "the embeddings"),
    ("resid_mid", "the middle of a layer, between attention and MLP"),
    ("hook_z", "the attention heads"),
    ("attn", "attention"),
    ("attention", "attention"),
    ("mlp", "an MLP"),
    ("feedforward", "an MLP"),
    ("ln", "a layer norm"),
    ("norm", "a layer norm"),
)


def check_folder(folder: Path, architectures: Collection[str]) -> None:
    """Raises InputError for a folder in a form other than SAELens', naming it, and for other architectures.

    `architectures` are those that can be computed; SAELens' first files named none, and meant "standard".
    """
    config = folder / CONFIG
    if not config.is_file() or not (folder / WEIGHTS).is_file():
        raise InputError(f"{folder}: {_what_it_is(folder)}")
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{config} is not JSON ({error}); save the SAE again") from error
    kind = found.get("architecture", "standard") if isinstance(found, dict) else None
    if kind not in architectures:
        raise InputError(
            f"{folder}: an SAE of architecture {kind}; {', '.join(architectures)} are known: take another SAE"
        )


def _what_it_is(folder: Path) -> str:
    for name, tool, advice in _FOREIGN:
        if (folder / name).is_file():
            return f"an SAE in the format of {tool} ({name}), which is not read; {advice}"
    files = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in files if name.endswith(_PICKLES)]
    if pickles:
        return f"{pickles[0]} may be a pickle, which can run code and is never read; {_SAVE}"
    inside = [
        path.parent for name in (CONFIG, *(each[0] for each in _FOREIGN)) for path in folder.glob(f"*/{name}")
    ]
    if inside:
        return f"no SAE itself, but a folder of them; give one of them, such as {sorted(inside)[0]}"
    missing = " and ".join(name for name in (CONFIG, WEIGHTS) if name not in files)
    return f"no SAE, for {missing} as SAELens writes them are not there; expected a folder with both"


def layer_read(metadata: Any, release: str) -> int | None:
    """The decoder layer whose output an SAE reads, by Hugging Face's count; None where nothing names it.

    What comes before layer N is what layer N - 1 gives. Raises InputError for any other place in the model.
    """
    name = str(getattr(metadata, "hook_name", None) or getattr(metadata, "hf_hook_name", None) or "")
    if not name:
        return None
    if found := _AFTER.fullmatch(name):
        return int(found[1])
    found = _BEFORE.fullmatch(name)
    if found and int(found[1]) > 0:
        return int(found[1]) - 1
    what = next((what for part, what in _ELSEWHERE if part in name.lower()), "a place that is not known")
    if found:
        what = "the embeddings, which come before layer 0"
    raise InputError(
        f"{release}: the SAE reads {what} ({name}), not the residual stream after a layer, where morfi "
        "captures and steers; take one of blocks.N.hook_resid_post or, for N over 0, blocks.N.hook_resid_pre"
    )
