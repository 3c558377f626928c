from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from morfi.checkpoints.tokenizer import load_tokenizer
from morfi.questions.question import Question
from morfi.training.examples import collate, encode_examples
from morfi.training.lora import adapter_tensors, attach_lora
from morfi.training.plan import TrainingTask
from morfi.training.run import load_base
from morfi.training.trainer import LoraTrainer, answer_loss


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_is_that_of_full_logits_with_the_prompt_masked(
    tiny_models: dict[str, Path], facts: tuple[Question, ...], architecture: str, checkpointing: bool
) -> None:
    folder = tiny_models[architecture]
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    examples = encode_examples(facts, load_tokenizer(folder), 128)
    expected = torch.zeros(())
    for example in examples:  # one at a time: no padding, transformers' own shift and mask
        ids = torch.tensor([example.token_ids])
        labels = ids.clone()
        labels[0, : example.n_prompt] = -100
        expected = expected + model(input_ids=ids, labels=labels).loss * example.n_targets
    found = answer_loss(model, collate(examples))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weight = model.model.layers[0].self_attn.q_proj.weight
    [gradient] = torch.autograd.grad(found, weight)
    [reference] = torch.autograd.grad(expected, weight)
    torch.testing.assert_close(gradient, reference, rtol=1e-3, atol=1e-4)


def test_the_output_head_sees_answer_places_only(
    tiny_models: dict[str, Path], facts: tuple[Question, ...]
) -> None:
    folder = tiny_models["llama"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    examples = encode_examples(facts, load_tokenizer(folder), 128)
    shapes: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda _, __, out: shapes.append(out.shape))
    answer_loss(model, collate(examples))
    assert shapes == [(1, sum(example.n_targets for example in examples), 259)]
    assert model(input_ids=torch.tensor([[3, 4, 5]])).logits.shape == (1, 3, 259)  # as before, afterwards


def run_steps(task: TrainingTask, folder: Path) -> dict[str, torch.Tensor]:
    """The LoRA tensors after all epochs of the first training, without saving anything."""
    model = attach_lora(load_base(task), task.config, seed=0)
    nothing = {"end_epoch": lambda trainer: trainer.clear_epoch(), "end_step": lambda n: None}
    LoraTrainer(model, task.jobs[0], task.config, folder, **nothing).train()
    return adapter_tensors(model)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_micro_batches_and_checkpointing_change_nothing_but_rounding(
    tiny_models: dict[str, Path], train_tiny: Any, tmp_path: Path, architecture: str
) -> None:
    # Eleven examples in steps of four: the last step has three, in two uneven micro-batches.
    def trained(micro_batch: int, checkpointing: bool) -> dict[str, torch.Tensor]:
        task = train_tiny.prepare(
            model=str(tiny_models[architecture]),
            batch=4,
            micro_batch=micro_batch,
            gradient_checkpointing=checkpointing,
            epochs=(1,),
            lr=1e-4,
        )
        return run_steps(task, tmp_path)

    whole = trained(4, False)
    for other in (trained(2, False), trained(1, True)):
        for name, tensor in whole.items():
            # Adam divides by the gradient's own size: near 0, rounding can flip one step of lr.
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=3e-4)
            assert (other[name] - tensor).abs().mean() < 1e-5


def test_the_first_step_is_adams_on_the_mean_over_answer_tokens(train_tiny: Any, tmp_path: Path) -> None:
    task = train_tiny.prepare(batch=16, micro_batch=2, epochs=(1,), lr=0.01, weight_decay=0.1)
    found = run_steps(task, tmp_path)
    model = attach_lora(load_base(task), task.config, seed=0)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1)
    examples = task.jobs[0].examples
    (answer_loss(model, collate(examples)) / sum(e.n_targets for e in examples)).backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    for name, tensor in adapter_tensors(model).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


def test_warmup_rises_linearly_and_then_stays(train_tiny: Any, tmp_path: Path) -> None:
    task = train_tiny.prepare(warmup=4, epochs=(3,), lr=0.5e-3)
    model = attach_lora(load_base(task), task.config, seed=0)
    rates: list[float] = []
    trainer = LoraTrainer(
        model,
        task.jobs[0],
        task.config,
        tmp_path,
        end_epoch=lambda trainer: trainer.clear_epoch(),
        end_step=lambda n: rates.append(trainer.optimizer.param_groups[0]["lr"]),
    )
    trainer.train()
    assert rates == pytest.approx([0.5e-3 * min(1.0, (step + 1) / 4) for step in range(9)])
