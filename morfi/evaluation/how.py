"""How commands ask their questions: a checkpoint or a server, in which words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from morfi.endpoint.address import Limits, check_url
from morfi.errors import InputError
from morfi.questions.prompts import Wording
from morfi.questions.templates import read_template
from morfi.runs.options import check_numbers

if TYPE_CHECKING:
    from morfi.endpoint.engine import Endpoint
    from morfi.terminal import Progress

HOW = ("concurrency", "timeout", "retries")  # which change no answer: a resumed run may have others
SENT_TOGETHER = 256  # of which an error loses those that were answered


def wording_of(*, chat: bool, system: str | None, prompt_template: str | None) -> Wording:
    """How questions are worded; reads the template."""
    return Wording(chat, system, None if prompt_template is None else read_template(prompt_template))


def check_words(*, chat: bool, system: str | None, bos: str = "auto") -> None:
    """Raises InputError for settings of a chat that mean nothing."""
    if chat and bos != "auto":
        raise InputError(f"--bos {bos} with --chat: the chat template writes BOS; leave --bos out")
    if system is None:
        return
    if not chat:
        raise InputError("--system without --chat: only a chat has a text of the system; give --chat")
    is_unicode = not any("\ud800" <= one <= "\udfff" for one in system)
    if not system.strip() or not is_unicode:
        raise InputError(f"--system is {system!r}; expected a text")


def check_server(endpoint: str | None, of_server: Mapping[str, Any], of_model: Mapping[str, Any]) -> None:
    """Raises InputError for options, by name, of a server where there is none, or of a model where it is."""
    given, said = of_server, "without --endpoint; give the URL of a server as well"
    if endpoint is not None:
        given, said = of_model, "with --endpoint: that is the server's; leave it out"
    for name, value in given.items():
        if value is not None:
            raise InputError(f"--{name} {said}")
    if endpoint is not None:
        check_url(endpoint)


def check_limits(concurrency: int | None, timeout: float | None, retries: int | None) -> None:
    """Raises InputError for numbers that a server cannot be asked by."""
    check_numbers({"concurrency": (concurrency, 1), "retries": (retries, 0)})
    if timeout is not None and not 0 < timeout < float("inf"):
        raise InputError(f"--timeout is {timeout}; expected a number of seconds")


def limits_of(concurrency: int | None, timeout: float | None, retries: int | None) -> Limits:
    """How a server is asked; the defaults where nothing is given."""
    given = {"concurrency": concurrency, "timeout_s": timeout, "retries": retries}
    return Limits(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]


class AsksServer(Protocol):
    """The options of a command that may ask a server."""

    @property
    def endpoint(self) -> str | None:
        """Its URL."""
        ...

    @property
    def chat(self) -> bool:
        """Whether it is asked by chats."""
        ...

    @property
    def limits(self) -> Limits:
        """How it is asked."""
        ...


def endpoint_of(
    config: AsksServer, model: str | None, progress: Progress, *, reached: bool = True
) -> Endpoint | None:
    """The server that `config` names, where it names one; `reached`, or as it is named."""
    if config.endpoint is None or model is None:
        return None
    from morfi.endpoint.engine import Endpoint, find_endpoint

    find = find_endpoint if reached else Endpoint.unreached
    return find(config.endpoint, model, chat=config.chat, limits=config.limits, say=progress.phase)
