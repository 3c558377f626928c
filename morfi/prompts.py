"""Few-shot prompts: the text around a question and its exemplars, and its token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from morfi.errors import InputError
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
