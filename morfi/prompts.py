"""Few-shot prompts: the exemplars a relation shares, the text around a question, and its token ids."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morfi.errors import InputError
from morfi.questions import UNSPLIT, QuestionSet
from morfi.types import Question

ANSWERED = "Q: {question}\nA: {answer}\n\n"
ASKED = "Q: {question}\nA:"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as the model sees it."""

    question: Question
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shots:
    """The exemplars of each relation, and the questions left to score."""

    exemplars: Mapping[str, tuple[Question, ...]]
    scored: tuple[Question, ...]


def choose_shots(
    data: QuestionSet, scored: Sequence[Question], split: str, *, shots: int, seed: int
) -> Shots:
    """`shots` exemplars for every relation of `scored`, drawn by the seed and the same for all its questions.

    They come from train (from dev when train itself is scored). A source without splits gives them from its
    own questions; those, and any question about the same subjects, are then not scored. Raises InputError for
    a relation that has too few.
    """
    relations = sorted({question.relation for question in scored})
    if shots == 0:
        return Shots(dict.fromkeys(relations, ()), tuple(scored))
    source = _exemplar_split(data, split)
    pool: dict[str, list[Question]] = {relation: [] for relation in relations}
    for question in data.splits[source]:
        if question.relation in pool:
            pool[question.relation].append(question)
    exemplars: dict[str, tuple[Question, ...]] = {}
    for relation, candidates in pool.items():
        if len(candidates) < shots + (source == split):
            raise InputError(
                f"relation {relation} of {data.name} has {len(candidates)} questions in {source}: too few "
                f"for {shots} exemplars{' and a question to score' if source == split else ''}; "
                "give a smaller --shots or other --relations"
            )
        candidates.sort(key=lambda question: question.id)
        rng = random.Random(f"shots/{seed}/{relation}")  # noqa: S311 - a reproducible draw, not a secret
        exemplars[relation] = tuple(rng.sample(candidates, shots))
    if source != split:
        return Shots(exemplars, tuple(scored))
    shown = {question.subject for chosen in exemplars.values() for question in chosen}
    return Shots(exemplars, tuple(question for question in scored if question.subject not in shown))


def _exemplar_split(data: QuestionSet, split: str) -> str:
    if split == UNSPLIT:
        return UNSPLIT
    for candidate in ("train", "dev"):
        if candidate != split and candidate in data.splits:
            return candidate
    raise InputError(
        f"{data.name} has no train or dev questions beside {split} to take exemplars from; "
        "give --shots 0 or a data set with a train split"
    )


def load_tokenizer(model_dir: Path) -> Any:
    """The tokenizer saved in `model_dir`; raises InputError where there is none that can be used."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"the tokenizer in {model_dir} cannot be loaded: {reason}; expected tokenizer.json or "
            "tokenizer.model beside the weights"
        ) from error


def build_prompts(
    questions: Sequence[Question],
    exemplars: Mapping[str, Sequence[Question]],
    tokenizer: Any,
    *,
    chat: bool = False,
) -> list[Prompt]:
    """The prompts of `questions`, in order, with token ids that hold at most one BOS, at the front.

    With `chat` every exemplar is a turn of the model's own chat template; else plain "Q:" and "A:" lines.
    The first accepted answer of an exemplar is shown.
    """
    if chat:
        texts = [_chat_text(question, exemplars[question.relation], tokenizer) for question in questions]
    else:
        heads = {
            relation: "".join(ANSWERED.format(question=s.text, answer=s.answers[0]) for s in shown)
            for relation, shown in exemplars.items()
        }
        texts = [heads[q.relation] + ASKED.format(question=q.text) for q in questions]
    # A chat template writes the special tokens itself; a plain prompt gets what the tokenizer adds.
    encoded = tokenizer(texts, add_special_tokens=not chat)["input_ids"] if texts else []
    prompts = [Prompt(q, text, tuple(ids)) for q, text, ids in zip(questions, texts, encoded, strict=True)]
    for prompt in prompts:
        _check_bos(prompt, tokenizer.bos_token_id)
    return prompts


def _chat_text(question: Question, shown: Sequence[Question], tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the checkpoint has no chat template; leave --chat out")
    messages = []
    for exemplar in shown:
        messages.append({"role": "user", "content": exemplar.text})
        messages.append({"role": "assistant", "content": exemplar.answers[0]})
    messages.append({"role": "user", "content": question.text})
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _check_bos(prompt: Prompt, bos: int | None) -> None:
    # A chat template may reuse its BOS token between turns (ChatML does); only a doubled one is an error.
    if bos is not None and prompt.token_ids[:2] == (bos, bos):
        raise InputError(f"question {prompt.question.id}: the prompt would start with BOS twice")


def starts_with_bos(prompts: Sequence[Prompt], tokenizer: Any) -> bool:
    """Whether the prompts begin with the tokenizer's BOS token."""
    return (
        bool(prompts)
        and tokenizer.bos_token_id is not None
        and (prompts[0].token_ids[:1] == (tokenizer.bos_token_id,))
    )


def check_lengths(prompts: Sequence[Prompt], max_tokens: int, context: int) -> None:
    """Raises InputError for a prompt that leaves no room for `max_tokens` more in `context` tokens."""
    for prompt in prompts:
        if len(prompt.token_ids) + max_tokens > context:
            raise InputError(
                f"question {prompt.question.id}: prompt of {len(prompt.token_ids)} tokens and {max_tokens} "
                f"to generate do not fit in the context of {context}; give fewer --shots"
            )
