"""Greedy answers of the model that is being trained, by the rules of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from morfi.checkpoints.vocabulary import newline_tokens
from morfi.engine.protocol import Completion, Sampling
from morfi.questions.matching import is_correct, parse_answer
from morfi.questions.prompts import Prompt
from morfi.training.output_head import head_reads

if TYPE_CHECKING:
    import torch

DEV_BATCH = 64  # prompts that are answered together


class LiveGenerator:
    """Answers of a transformers model in memory: greedy, one for each prompt.

    An answer ends where the serving engine ends it: at EOS or at the first token that holds a newline.
    """

    def __init__(self, model: Any, tokenizer: Any, batch: int = DEV_BATCH) -> None:
        self._model, self._tokenizer, self._batch = model, tokenizer, batch
        eos = getattr(model.generation_config, "eos_token_id", None)
        ends = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
        newlines = frozenset(newline_tokens(tokenizer))
        self._ends, self._end_tokens = ends | newlines, frozenset(ends - newlines)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
    ) -> list[list[Completion]]:
        """One greedy completion for each prompt (token ids), in the order of `prompts`.

        Raises ValueError for a sampling that is not greedy, or not the same for all prompts.
        """
        wanted = {sampling} if isinstance(sampling, Sampling) else set(sampling)
        if len(wanted) > 1 or any(each.temperature > 0 or each.n != 1 for each in wanted):
            raise ValueError("a model in training answers greedily, once, and all prompts alike")
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        generated: list[list[int]] = [[] for _ in prompts]
        self._model.eval()  # training mode comes back with the next training step
        for start in range(0, len(order), self._batch):
            indices = order[start : start + self._batch]
            answers = self._greedy([prompts[index] for index in indices], next(iter(wanted)).max_tokens)
            for index, token_ids in zip(indices, answers, strict=True):
                generated[index] = token_ids
        # An end token need not be a special one.
        own = [ids[:-1] if ids[-1] in self._end_tokens else ids for ids in generated]
        texts = self._tokenizer.batch_decode(own, skip_special_tokens=True) if own else []
        return [
            [Completion(text.split("\n", 1)[0], tuple(ids), "stop" if ids[-1] in self._ends else "length", 0)]
            for text, ids in zip(texts, generated, strict=True)
        ]

    def _greedy(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        import torch

        answers: list[list[int]] = [[] for _ in prompts]
        alive = list(range(len(prompts)))  # the answer that each row of the batch belongs to
        input_ids, mask = _padded(prompts, self._model.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        cache = None
        with torch.no_grad(), head_reads(self._model, lambda hidden: hidden[:, -1:]):
            for _ in range(max_tokens):
                output = self._model(
                    input_ids=input_ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                )
                tokens = output.logits[:, -1].argmax(-1)
                for index, token in zip(alive, tokens.tolist(), strict=True):
                    answers[index].append(token)
                going = [row for row, index in enumerate(alive) if answers[index][-1] not in self._ends]
                if not going:
                    break
                cache = output.past_key_values
                rows = torch.tensor(going, device=mask.device)
                if len(going) < len(alive):
                    cache.batch_select_indices(rows)
                    alive = [alive[row] for row in going]
                input_ids = tokens[rows][:, None]
                mask = torch.cat([mask[rows], mask.new_ones(len(going), 1)], dim=1)
                positions = mask.sum(1, keepdim=True) - 1
        return answers


@dataclass(frozen=True, slots=True)
class DevAccuracy:
    """Right answers among `n` dev questions."""

    n: int
    n_correct: int


def dev_accuracy(
    generator: LiveGenerator, prompts: Sequence[Prompt], max_tokens: int, match: str
) -> DevAccuracy:
    """How many of the questions of `prompts` are answered correctly, greedily."""
    answered = generator.generate([prompt.token_ids for prompt in prompts], Sampling(max_tokens=max_tokens))
    right = [
        is_correct(parse_answer(completions[0].text), prompt.question.answers, match)
        for prompt, completions in zip(prompts, answered, strict=True)
    ]
    return DevAccuracy(len(right), sum(right))


def _padded(prompts: Sequence[Sequence[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [n_prompts, n_longest] padded on the left, and 1 where a token is real."""
    import torch

    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids.to(device), mask.to(device)
