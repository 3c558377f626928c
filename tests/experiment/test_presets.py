"""The experiments that come with morfi."""

from __future__ import annotations

import pytest
from command_line import CommandLine

from morfi.checkpoints.presets import PRESETS
from morfi.command.experiment import open_experiment, presets

PAPER = ("llama-3.1-8b", "gemma-2-9b", "mistral-7b-v0.3")


@pytest.mark.parametrize("name", PAPER)
def test_an_experiment_of_the_paper_reads_the_layer_of_its_models_sae(name: str) -> None:
    tables, _ = open_experiment(None, name, fast=False)
    preset = PRESETS[name]
    assert (tables["ckpt"], tables["find"]["sae"], tables["layer"]) == (name, preset.sae, preset.sae_layer)


@pytest.mark.parametrize("name", presets())
def test_every_experiment_that_comes_with_morfi_can_be_written(run: CommandLine, name: str) -> None:
    given = ("--preset", name.removesuffix("-fast"), *(["--fast"] if name.endswith("-fast") else []))
    model = name.removesuffix("-fast")
    assert f'ckpt = "{model}"' in run("run", *given, "--write-config").out


def test_questions_that_the_user_must_fetch_are_asked_for_before_the_model_is(run: CommandLine) -> None:
    ended = run("run", "--preset", "llama-3.1-8b")
    assert (ended.code, ended.out) == (2, "")
    assert "[split] no folder" in ended.err
    assert "unpack dataset.zip of github.com/princeton-nlp/EntityQuestions" in ended.err
    assert "--set data=PATH" in ended.err
    assert "could not be fetched" not in ended.err
