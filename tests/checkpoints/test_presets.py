from __future__ import annotations

import pytest

from morfi.checkpoints.presets import PRESETS, preset
from morfi.errors import InputError


def test_each_preset_is_found_under_its_own_name() -> None:
    assert set(PRESETS) == {
        "smollm2",
        "gemma-3-270m",
        "llama-3.1-8b",
        "gemma-2-9b",
        "mistral-7b-v0.3",
        "qwen-2.5-7b",
        "gemma-3-1b",
        "gemma-3-4b",
    }
    assert all(preset(name).name == name and "/" in preset(name).model_id for name in PRESETS)


def test_two_small_models_are_embedded() -> None:
    assert [name for name in PRESETS if preset(name).embedded] == ["smollm2", "gemma-3-270m"]


@pytest.mark.parametrize(("wrong", "meant"), [("smolm2", "smollm2"), ("gemma-2-9", "gemma-2-9b")])
def test_a_misspelt_preset_suggests_the_nearest(wrong: str, meant: str) -> None:
    with pytest.raises(InputError, match=f'Did you mean "{meant}"'):
        preset(wrong)


def test_an_unrelated_name_lists_the_presets_without_a_guess() -> None:
    with pytest.raises(InputError, match="expected one of smollm2") as caught:
        preset("zzz")
    assert "Did you mean" not in str(caught.value)


def test_each_of_the_large_presets_has_a_sae_and_its_layer() -> None:
    having = {name: (preset(name).sae, preset(name).sae_layer) for name in PRESETS}
    assert [having.pop(name) for name in ("smollm2", "qwen-2.5-7b")] == [(None, None)] * 2
    assert {name: layer for name, (_, layer) in having.items()} == {
        "gemma-3-270m": 12,
        "llama-3.1-8b": 15,
        "gemma-2-9b": 20,
        "mistral-7b-v0.3": 15,
        "gemma-3-1b": 13,
        "gemma-3-4b": 17,
    }
    assert all(sae is not None and ":" in sae for sae, _ in having.values())
