"""The reference: transformers' own residual streams, changed where a steering says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from morfi.engine.directions import Direction
from morfi.engine.steering import Steering
from morfi.errors import InputError
from morfi.verification.reference import Reference, load_reference, reference_of

TOKENS = [3, 14, 15, 92, 65, 35]


@pytest.fixture(scope="module")
def reference() -> Reference:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "vocab_size": 100}
    config = AutoConfig.for_model("llama", **sizes, num_attention_heads=2, num_key_value_heads=1)
    return reference_of(AutoModelForCausalLM.from_config(config).eval())


def test_the_streams_are_the_hidden_states_of_transformers(reference: Reference) -> None:
    streams = reference.run(TOKENS)
    with torch.no_grad():
        found = reference.model(torch.tensor([TOKENS]), output_hidden_states=True)
    # The last of the hidden states is taken after the final norm.
    for layer in range(2):
        assert torch.equal(streams.after[layer], found.hidden_states[layer + 1][0])
    assert torch.equal(reference.model.model.norm(streams.after[2]), found.hidden_states[3][0])
    assert torch.equal(streams.logits, found.logits[0])


def test_a_steering_changes_its_positions_and_what_follows_from_them(reference: Reference) -> None:
    direction = Direction(torch.ones(16))
    wanted = Steering(1, "d", strength=0.5, positions=(-1, (4, None)))
    plain, found = reference.run(TOKENS), reference.run(TOKENS, 3, [wanted], {"d": direction})
    assert found.n_changed == (3,)
    assert all(torch.equal(a, b) for a, b in zip(found.after[:1], plain.after[:1], strict=True))
    assert torch.equal(found.before[1], plain.after[1])
    moved = (found.after[1] - plain.after[1])[:, 0]
    torch.testing.assert_close(moved, torch.tensor([0, 0, 0.5, 0, 0.5, 0.5]))
    assert torch.equal(found.after[2][:2], plain.after[2][:2])
    assert not torch.equal(found.logits[2], plain.logits[2])


def test_a_folder_is_loaded_in_the_dtype_that_is_asked_for(tiny_model: Path) -> None:
    found = load_reference(tiny_model, "bfloat16")
    assert found.model.dtype == torch.bfloat16
    assert found.n_vocab == 259
    assert found.run(TOKENS).after[0].dtype == torch.float32


def test_a_model_without_such_a_list_is_named(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference.model.config, "num_hidden_layers", 7)
    with pytest.raises(InputError, match="LlamaForCausalLM is of no known form: it has 0 lists of 7 layers"):
        reference_of(reference.model)
