"""Few-shot prompts: the text around a question and its exemplars, and its token ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from morfi.checkpoints import Checkpoint
from morfi.checkpoints.model_files import context_limit
from morfi.checkpoints.tokenizer import control_tokens, frame_of, open_tokenizer
from morfi.errors import InputError, reason_of
from morfi.questions.encoding import Spoken, encode, n_tokens
from morfi.questions.exemplars import Shots
from morfi.questions.question import Question
from morfi.terminal import Progress

ANSWERED = "Q: {question}\nA: {answer}\n\n"
ASKED = "Q: {question}\nA:"
AS_IT_IS = "{question}"  # of texts that are no questions
CHAT = "chat template"
MAX_CONTEXT = 4096  # closed-book prompts are short; a longer context only costs memory


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as the model sees it; its first answer is stored as sample number `sample`."""

    question: Question
    text: str
    token_ids: tuple[int, ...]
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Prompted:
    """Questions as one checkpoint is asked them."""

    prompts: tuple[Prompt, ...]
    form: str  # ASKED, CHAT or AS_IT_IS
    context: int  # tokens of prompt and answer together
    bos: bool  # whether the prompts begin with it

    def of(self, question_ids: Sequence[str]) -> Prompted:
        """The prompts of these questions alone, in their order; for one prompt a question."""
        by_id = {prompt.question.id: prompt for prompt in self.prompts}
        return replace(self, prompts=tuple(by_id[question_id] for question_id in question_ids))


def prompted(
    asked: Sequence[Shots],
    checkpoint: Checkpoint,
    engine: Mapping[str, Any],
    *,
    max_tokens: int,
    bos: str,
    progress: Progress,
    chat: bool = False,
    judged: bool = True,
    form: str = ASKED,
) -> Prompted:
    """The prompts of all of `asked`, in order, as `checkpoint` is asked them under the settings of `engine`.

    `progress` is told what is special about the tokenizer, how far many prompts are and, where answers are
    `judged`, how many questions `max_tokens` puts out of reach. Raises InputError for a prompt that leaves no
    room for so many tokens, and for texts that cannot be asked (`build_prompts`).
    """
    tokenizer = prompt_tokenizer(checkpoint.model_dir, bos, progress, chat=chat)
    spoken = Spoken(sum(len(shots.scored) for shots in asked), progress.phase)
    prompts = [
        replace(prompt, sample=shots.first_sample) if shots.first_sample else prompt
        for shots in asked
        for prompt in build_prompts(
            shots.scored, shots.exemplars, tokenizer, chat=chat, form=form, on_part=spoken
        )
    ]
    context = context_for(checkpoint, engine)
    check_lengths(prompts, max_tokens, context)
    if judged:
        questions = list({prompt.question.id: prompt.question for prompt in prompts}.values())
        if said := out_of_reach(questions, tokenizer, max_tokens):
            progress.phase(said)
    return Prompted(tuple(prompts), CHAT if chat else form, context, starts_with_bos(prompts, tokenizer))


def prompt_tokenizer(model_dir: Path, bos: str, progress: Progress, *, chat: bool = False) -> Any:
    """The tokenizer of `model_dir` for prompts and training examples; `progress` is told what is special.

    `bos` is "auto", "yes" or "no" (`morfi.checkpoints.tokenizer.open_tokenizer`); what stands around the
    text of a `chat` is for its template to say.
    """
    found = open_tokenizer(model_dir, bos)
    for name, line in found.changes.items():
        if name == "tokenizer" or not chat:
            progress.phase(line)
    return found.tokenizer


def zero_shot(questions: Sequence[Question], tokenizer: Any) -> list[Prompt]:
    """The prompts of `questions` without exemplars, in order."""
    return build_prompts(questions, dict.fromkeys((q.relation for q in questions), ()), tokenizer)


def build_prompts(
    questions: Sequence[Question],
    exemplars: Mapping[str, Sequence[Question]],
    tokenizer: Any,
    *,
    chat: bool = False,
    form: str = ASKED,
    on_part: Callable[[int], None] | None = None,
) -> list[Prompt]:
    """The prompts of `questions`, in order; no text holds a control token, BOS stands in front at most.

    With `chat` every exemplar is a turn of the model's own chat template; else plain "Q:" and "A:" lines, and
    the question in its `form`.
    The first accepted answer of an exemplar is shown.
    """
    if chat:
        heads = [""] * len(questions)
        tails = [_chat_text(question, exemplars[question.relation], tokenizer) for question in questions]
    else:
        shared = {
            relation: "".join(ANSWERED.format(question=s.text, answer=s.answers[0]) for s in shown)
            for relation, shown in exemplars.items()
        }
        heads = [shared[question.relation] for question in questions]
        tails = [form.format(question=question.text) for question in questions]
    # A chat template writes the special tokens itself; a plain prompt gets what the tokenizer adds.
    encoded = encode(heads, tails, tokenizer, special=not chat, on_part=on_part)
    prompts = [
        Prompt(question, head + tail, ids)
        for question, head, tail, ids in zip(questions, heads, tails, encoded, strict=True)
    ]
    if not prompts:
        return []
    if chat:
        # The template writes control tokens of its own, so the texts are looked at before it.
        _check_texts(questions, exemplars, tokenizer)
        for prompt in prompts:
            _check_bos_once(prompt, tokenizer)
    else:
        check_no_control([(one.question.id, one.text, one.token_ids) for one in prompts], tokenizer)
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
            f"{reason_of(error)}; mend the template or leave --chat out"
        ) from error


def check_no_control(encoded: Sequence[tuple[str, str, Sequence[int]]], tokenizer: Any) -> None:
    """Raises InputError for texts (question id, text, token ids) with control tokens after their beginning.

    A model takes "</s>" in a question for the end of a text, not for four characters.
    """
    _refuse_control(encoded, tokenizer, len(frame_of(tokenizer).before))


def _refuse_control(encoded: Sequence[tuple[str, str, Sequence[int]]], tokenizer: Any, n_before: int) -> None:
    control = control_tokens(tokenizer)
    for question_id, text, token_ids in encoded:
        if control.isdisjoint(token_ids[n_before:]):
            continue
        for index in token_ids[n_before:]:
            # The unknown token stands for characters as well.
            if index in control and (index != tokenizer.unk_token_id or tokenizer.unk_token in text):
                what = "BOS" if index == tokenizer.bos_token_id else "the control token"
                raise InputError(
                    f"question {question_id}: the prompt would hold {what} "
                    f"({tokenizer.convert_ids_to_tokens(index)}) in its text; take the token out of the "
                    "questions and answers"
                )


def _check_texts(
    questions: Sequence[Question], exemplars: Mapping[str, Sequence[Question]], tokenizer: Any
) -> None:
    """As `check_no_control`, for the questions and exemplars of chats."""
    owners = {question.text: question.id for question in questions}
    for shown in exemplars.values():
        owners |= {text: one.id for one in shown for text in (one.text, one.answers[0])}
    encoded = tokenizer(list(owners), add_special_tokens=False)["input_ids"]
    _refuse_control(list(zip(owners.values(), owners, encoded, strict=True)), tokenizer, 0)


def _check_bos_once(prompt: Prompt, tokenizer: Any) -> None:
    bos = tokenizer.bos_token_id
    # A chat template may use its BOS token between turns as well, as ChatML does.
    if bos is not None and prompt.token_ids[:2] == (bos, bos):
        raise InputError(
            f"question {prompt.question.id}: the prompt would hold BOS ({tokenizer.bos_token}) twice at its "
            "start; mend the chat template"
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


def out_of_reach(questions: Sequence[Question], tokenizer: Any, max_tokens: int) -> str | None:
    """A sentence on the questions whose accepted answers all take more than `max_tokens`; None without any.

    An answer is counted as it would be generated, with the blank before it, by the run's own tokenizer.
    """
    # A token holds a byte at least.
    asked = [q for q in questions if all(len(answer.encode()) >= max_tokens for answer in q.answers)]
    answers = list(dict.fromkeys(answer for question in asked for answer in question.answers))
    if not answers:
        return None
    lengths = dict(
        zip(answers, n_tokens([f" {answer.strip()}" for answer in answers], tokenizer), strict=True)
    )
    shortest = [min(lengths[answer] for answer in question.answers) for question in asked]
    longer = sorted(n for n in shortest if n > max_tokens)
    if not longer:
        return None
    return (
        f"{len(longer)} of {len(questions)} questions have accepted answers of more than {max_tokens} tokens "
        f"only, so no answer to them can be right; --max-tokens {longer[-1]} would reach all"
    )


def context_for(checkpoint: Checkpoint, engine: Mapping[str, Any]) -> int:
    """The tokens a request may have: the model's limit, or what the engine setting makes it."""
    # An architecture without position embeddings names no limit of its own.
    limit = context_limit(checkpoint.model_dir) or MAX_CONTEXT
    wanted = engine.get("max_model_len", min(limit, MAX_CONTEXT))
    if not isinstance(wanted, int) or not 0 < wanted <= limit:
        raise InputError(f"--engine max_model_len={wanted}: the model takes 1 to {limit} tokens")
    return wanted
