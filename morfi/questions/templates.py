"""Prompt templates of one's own: Jinja in a sandbox, which reads no files and changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.errors import InputError, reason_of
from morfi.files import note_source
from morfi.questions.question import Question

if TYPE_CHECKING:
    from jinja2 import Template

FIELDS = "question, subject, relation, exemplars (each with question and answer)"


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A template for the whole text of a prompt, with the sha256 of its source."""

    name: str
    source: str
    sha256: str
    compiled: Template

    def write(self, question: Question, shown: Sequence[Question]) -> str:
        """The prompt of `question` after the exemplars `shown`; raises InputError where there is none."""
        import jinja2

        exemplars = [{"question": one.text, "answer": one.answers[0]} for one in shown]
        fields: dict[str, Any] = {
            "question": question.text,
            "subject": question.subject,
            "relation": question.relation,
            "exemplars": exemplars,
        }
        try:
            text = self.compiled.render(fields)
            text.encode()
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
            raise self._failed(question, reason_of(error)) from error
        except (ValueError, RecursionError, MemoryError) as error:
            raise self._failed(question, reason_of(error)) from error
        if "\0" in text:
            raise self._failed(question, "the prompt holds NUL")
        if not text.strip():
            raise self._failed(question, "the prompt is empty")
        if text.strip().splitlines()[-1].strip() in question.answers:
            raise self._failed(question, "the prompt ends with a line that is the answer itself")
        return text

    def _failed(self, question: Question, reason: str) -> InputError:
        return InputError(f"{self.name}, question {question.id}: {reason}; a template has {FIELDS}")


def read_template(path: str) -> PromptTemplate:
    """The template in a file of UTF-8; raises InputError for one that cannot be read or is no Jinja.

    A line that holds a statement alone leaves no blank line, and one newline at the end does not count.
    """
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        note_source(Path(path).expanduser())
        content = Path(path).expanduser().read_bytes()
        source = content.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise InputError(f"--prompt-template {path}: {reason}; give a file of UTF-8 text") from error
    # A prompt is no page: nothing is to be escaped. Without a loader there are no other files.
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    try:
        compiled = environment.from_string(source)
    except (TemplateError, RecursionError, OverflowError) as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise InputError(f"--prompt-template {path}{where}: {reason_of(error)}; expected Jinja") from error
    return PromptTemplate(path, source, hashlib.sha256(source.encode()).hexdigest(), compiled)


def check_distinct(template: PromptTemplate, prompts: Sequence[tuple[Question, str]]) -> None:
    """Raises InputError where two questions have one prompt, so that it cannot say which is asked."""
    first: dict[str, Question] = {}
    for question, text in prompts:
        other = first.setdefault(text, question)
        if other.text != question.text:
            raise InputError(
                f"{template.name}: questions {other.id} and {question.id} have the same prompt; write "
                "{{ question }} or {{ subject }} into the template"
            )
