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
    """A question as the model sees it; its first answer is stored as sample number `sample`."""

    question: Question
    text: str
    token_ids: tuple[int, ...]
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Shots:
    """The exemplars of each relation, and the questions left to score."""

    exemplars: Mapping[str, tuple[Question, ...]]
    scored: tuple[Question, ...]


def choose_shots(
    data: QuestionSet,
    scored: Sequence[Question],
    split: str,
    *,
    shots: int,
    seed: int | str,
    sources: Sequence[str] = ("train", "dev"),
) -> Shots:
    """`shots` exemplars for every relation of `scored`, drawn by the seed and the same for all its questions.

    They come from the first of `sources` that is not the scored split, and none is about a subject of that
    split. A source without splits gives them from its own questions; those, and any question about the same
    subjects, are then not scored. Raises InputError for a relation that has too few.
    """
    relations = sorted({question.relation for question in scored})
    if shots == 0:
        return Shots(dict.fromkeys(relations, ()), tuple(scored))
    source = _exemplar_split(data, split, sources)
    # The whole split's subjects, not only those of `scored`, lest --limit decide who is an exemplar.
    barred = {question.subject for question in data.splits[split]} if source != split else set()
    pool: dict[str, list[Question]] = {relation: [] for relation in relations}
    for question in data.splits[source]:
        if question.relation in pool and question.subject not in barred:
            pool[question.relation].append(question)
    exemplars: dict[str, tuple[Question, ...]] = {}
    for relation, candidates in pool.items():
        if len(candidates) < shots:
            about = f", about other subjects than those of {split}" if source != split else ""
            raise _too_few(f"{len(candidates)} questions in {source}{about}", relation, data, shots)
        candidates.sort(key=lambda question: question.id)
        rng = random.Random(f"shots/{seed}/{relation}")  # noqa: S311 - a reproducible draw, not a secret
        exemplars[relation] = tuple(rng.sample(candidates, shots))
    if source != split:
        return Shots(exemplars, tuple(scored))
    shown = {question.subject for chosen in exemplars.values() for question in chosen}
    left = tuple(question for question in scored if question.subject not in shown)
    for relation in sorted(set(relations) - {question.relation for question in left}):
        raise _too_few(f"no question left to score of {len(pool[relation])}", relation, data, shots)
    return Shots(exemplars, left)


def _too_few(found: str, relation: str, data: QuestionSet, shots: int) -> InputError:
    return InputError(
        f"relation {relation} of {data.name} has {found}: too few for {shots} exemplars; "
        "give a smaller --shots or other --relations"
    )


def _exemplar_split(data: QuestionSet, split: str, sources: Sequence[str]) -> str:
    if split == UNSPLIT:
        return UNSPLIT
    for candidate in sources:
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
        _check_bos(prompt, tokenizer, chat=chat)
    return prompts


def _chat_text(question: Question, shown: Sequence[Question], tokenizer: Any) -> str:
    import jinja2

    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the checkpoint has no chat template; leave --chat out")
    messages = []
    for exemplar in shown:
        messages.append({"role": "user", "content": exemplar.text})
        messages.append({"role": "assistant", "content": exemplar.answers[0]})
    messages.append({"role": "user", "content": question.text})
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except jinja2.TemplateError as error:
        raise InputError(
            f"the checkpoint's chat template cannot write question {question.id}: "
            f"{str(error).splitlines()[0]}; mend the template or leave --chat out"
        ) from error


def _check_bos(prompt: Prompt, tokenizer: Any, *, chat: bool) -> None:
    bos = tokenizer.bos_token_id
    # A chat template may use its BOS token between turns as well (ChatML does), a plain prompt in front only.
    doubled = prompt.token_ids[:2] == (bos, bos)
    if bos is not None and (doubled or (not chat and bos in prompt.token_ids[1:])):
        raise InputError(
            f"question {prompt.question.id}: the prompt would hold BOS ({tokenizer.bos_token}) "
            f"{'twice at its start' if doubled else 'in its text'}; "
            f"{'mend the chat template' if chat else 'take the token out of the questions and answers'}"
        )


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
                f"to generate do not fit in the context of {context}; give fewer --shots or --max-tokens"
            )
