"""Few-shot prompts: the text around a question and its exemplars, and its token ids."""

from __future__ import annotations

import json
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
from morfi.questions.matching import pattern_of
from morfi.questions.question import Question
from morfi.questions.templates import PromptTemplate, check_distinct
from morfi.terminal import Progress

ANSWERED = "Q: {question}\nA: {answer}\n\n"
ASKED = "Q: {question}\nA:"
AS_IT_IS = "{question}"  # of texts that are no questions
CHAT = "chat template"
MAX_CONTEXT = 4096  # closed-book prompts are short; a longer context only costs memory


@dataclass(frozen=True, slots=True)
class Wording:
    """How a question and its exemplars become text: as "Q:" and "A:" lines, or by a template of one's own.

    In a `chat` every exemplar is two turns, or what the template writes is the only one; the text of the
    `system` goes before them.
    """

    chat: bool = False
    system: str | None = None
    template: PromptTemplate | None = None
    asked: str = ASKED  # the form of the question itself, of no chat

    @property
    def form(self) -> str:
        """The form of prompts, for a run's record."""
        own, how = self.template, CHAT if self.chat else self.asked
        if own is not None:
            how = f"{CHAT} of {own.source}" if self.chat else own.source
        return how if self.system is None else f"{how} after {self.system!r}"

    def texts(
        self, questions: Sequence[Question], exemplars: Mapping[str, Sequence[Question]]
    ) -> list[tuple[str, str]]:
        """The beginning of each prompt, which those of a relation may share, and its rest; of no chat."""
        if self.template is not None:
            own = [self.template.write(one, exemplars[one.relation]) for one in questions]
            check_distinct(self.template, list(zip(questions, own, strict=True)))
            return [("", text) for text in own]
        shared = {
            relation: "".join(ANSWERED.format(question=s.text, answer=s.answers[0]) for s in shown)
            for relation, shown in exemplars.items()
        }
        return [(shared[one.relation], self.asked.format(question=one.text)) for one in questions]

    def messages(
        self, questions: Sequence[Question], exemplars: Mapping[str, Sequence[Question]]
    ) -> list[list[dict[str, str]]]:
        """The messages of each chat, the last of them the question."""
        before = [] if self.system is None else [_message("system", self.system)]
        if self.template is not None:
            return [[*before, _message("user", text)] for _, text in self.texts(questions, exemplars)]
        turns = {
            relation: [
                message
                for one in shown
                for message in (_message("user", one.text), _message("assistant", one.answers[0]))
            ]
            for relation, shown in exemplars.items()
        }
        return [[*before, *turns[one.relation], _message("user", one.text)] for one in questions]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


PLAIN = Wording()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as the model sees it; its first answer is stored as sample number `sample`."""

    question: Question
    text: str
    token_ids: tuple[int, ...]  # or the bytes of the text (`worded`)
    sample: int = 0


@dataclass(frozen=True, slots=True)
class Prompted:
    """Questions as one checkpoint is asked them."""

    prompts: tuple[Prompt, ...]
    form: str  # as of `Wording.form`
    context: int  # tokens of prompt and answer together; 0 where it is the server's
    bos: bool  # whether the prompts begin with it

    def of(self, question_ids: Sequence[str]) -> Prompted:
        """The prompts of these questions alone, in their order; for one prompt a question."""
        by_id = {prompt.question.id: prompt for prompt in self.prompts}
        return replace(self, prompts=tuple(by_id[question_id] for question_id in question_ids))


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """A prompt as a person looks at it; without tokens where the tokenizer is a server's."""

    question_id: str
    prompt: str
    n_tokens: int | None


def shown(asked: Prompted, n: int) -> list[ShownPrompt]:
    """The first `n` of the prompts."""
    return [
        ShownPrompt(one.question.id, one.text, len(one.token_ids) if asked.context else None)
        for one in asked.prompts[:n]
    ]


def prompted(
    asked: Sequence[Shots],
    checkpoint: Checkpoint,
    engine: Mapping[str, Any],
    *,
    max_tokens: int,
    bos: str,
    progress: Progress,
    wording: Wording = PLAIN,
    match: str | None = None,
) -> Prompted:
    """The prompts of all of `asked`, in order, as `checkpoint` is asked them under the settings of `engine`.

    `progress` is told what is special about the tokenizer, how far many prompts are and, where accepted
    answers are looked for by the rule `match`, how many questions `max_tokens` puts out of reach. Raises
    InputError for a prompt that leaves no room for so many tokens, and for texts that cannot be asked
    (`build_prompts`).
    """
    tokenizer = prompt_tokenizer(checkpoint.model_dir, bos, progress, chat=wording.chat)
    spoken = Spoken(sum(len(shots.scored) for shots in asked), progress.phase)
    prompts = [
        replace(prompt, sample=shots.first_sample) if shots.first_sample else prompt
        for shots in asked
        for prompt in build_prompts(shots.scored, shots.exemplars, tokenizer, wording, on_part=spoken)
    ]
    context = context_for(checkpoint, engine)
    check_lengths(prompts, max_tokens, context)
    if match is not None and pattern_of(match) is None:
        questions = list({prompt.question.id: prompt.question for prompt in prompts}.values())
        if said := out_of_reach(questions, tokenizer, max_tokens):
            progress.phase(said)
    return Prompted(tuple(prompts), wording.form, context, starts_with_bos(prompts, tokenizer))


def worded(asked: Sequence[Shots], wording: Wording) -> Prompted:
    """The prompts of all of `asked`, in order, for a server that has the tokenizer and puts BOS in front.

    UTF-8 takes the place of token ids. The text of a chat is the JSON of its messages.
    """
    prompts = []
    for shots in asked:
        if wording.chat:
            chats = wording.messages(shots.scored, shots.exemplars)
            texts = [json.dumps(messages, ensure_ascii=False) for messages in chats]
        else:
            texts = [head + tail for head, tail in wording.texts(shots.scored, shots.exemplars)]
        prompts += [
            Prompt(question, text, tuple(text.encode()), shots.first_sample)
            for question, text in zip(shots.scored, texts, strict=True)
        ]
    return Prompted(tuple(prompts), wording.form, context=0, bos=False)


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
    wording: Wording = PLAIN,
    *,
    on_part: Callable[[int], None] | None = None,
) -> list[Prompt]:
    """The prompts of `questions`, in order; no text holds a control token, BOS stands in front at most.

    A chat is written by the model's own chat template. The first accepted answer of an exemplar is shown.
    """
    if wording.chat:
        chats = wording.messages(questions, exemplars)
        parts = [
            ("", _chat_text(one, messages, tokenizer)) for one, messages in zip(questions, chats, strict=True)
        ]
    else:
        parts = wording.texts(questions, exemplars)
    heads, tails = [head for head, _ in parts], [tail for _, tail in parts]
    # A chat template writes the special tokens itself; a plain prompt gets what the tokenizer adds.
    encoded = encode(heads, tails, tokenizer, special=not wording.chat, on_part=on_part)
    prompts = [
        Prompt(question, head + tail, ids)
        for question, head, tail, ids in zip(questions, heads, tails, encoded, strict=True)
    ]
    if not prompts:
        return []
    if wording.chat:
        # The template writes control tokens of its own, so the messages are looked at before it.
        _check_messages(questions, exemplars, chats, tokenizer)
        for prompt in prompts:
            _check_bos_once(prompt, tokenizer)
    else:
        check_no_control([(one.question.id, one.text, one.token_ids) for one in prompts], tokenizer)
    return prompts


def _chat_text(question: Question, messages: Sequence[Mapping[str, str]], tokenizer: Any) -> str:
    import jinja2

    if not getattr(tokenizer, "chat_template", None):
        raise InputError("the checkpoint has no chat template; leave --chat out")
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except jinja2.TemplateError as error:
        system = " or --system" if messages[0]["role"] == "system" else ""
        raise InputError(
            f"the checkpoint's chat template cannot write question {question.id}: "
            f"{reason_of(error)}; mend the template or leave --chat{system} out"
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
                    "questions, answers and template"
                )


def _check_messages(
    questions: Sequence[Question],
    exemplars: Mapping[str, Sequence[Question]],
    chats: Sequence[Sequence[Mapping[str, str]]],
    tokenizer: Any,
) -> None:
    """As `check_no_control`, for what is said in chats."""
    owners = {
        message["content"]: question.id
        for question, messages in zip(questions, chats, strict=True)
        for message in messages
    }
    for shown in exemplars.values():
        owners |= {text: one.id for one in shown for text in (one.text, one.answers[0]) if text in owners}
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
