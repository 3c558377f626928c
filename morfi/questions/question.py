"""A closed-book question."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Question:
    """One closed-book question; `answers` holds every accepted answer, at least one."""

    id: str
    relation: str
    subject: str
    text: str
    answers: tuple[str, ...]
