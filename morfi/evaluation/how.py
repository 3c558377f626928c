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
    """The options of a command that asks a checkpoint or a server."""

    @property
    def ckpt(self) -> str | None:
        """The checkpoint."""
        ...

    @property
    def base(self) -> str | None:
        """The base of an adapter."""
        ...

    @property
    def dtype(self) -> str | None:
        """That of a checkpoint."""
        ...

    @property
    def engine(self) -> Mapping[str, Any]:
        """Settings of vLLM."""
        ...

    @property
    def bos(self) -> str:
        """BOS before each prompt."""
        ...

    @property
    def served(self) -> str | None:
        """The server's name for the model."""
        ...

    @property
    def concurrency(self) -> int | None:
        """Requests to the server at once."""
        ...

    @property
    def timeout(self) -> float | None:
        """Seconds for the server to answer one."""
        ...

    @property
    def retries(self) -> int | None:
        """Times that a request is sent again."""
        ...

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


def check_asked(config: AsksServer) -> None:
    """Raises InputError unless either a checkpoint or a server is given, with the options of that one."""
    if config.endpoint is None and config.ckpt is None:
        raise InputError(
            "--ckpt is missing: give a preset (smollm2), a model or adapter folder, or a hub id; or "
            "--endpoint and --model for a server"
        )
    of_model = {
        "ckpt": config.ckpt,
        "base": config.base,
        "dtype": config.dtype,
        "engine": config.engine or None,
        "bos": None if config.bos == "auto" else config.bos,
    }
    of_server = {"model": config.served, **{name: getattr(config, name) for name in HOW}}
    given, said = of_server, "without --endpoint; give the URL of a server as well"
    if config.endpoint is not None:
        given, said = of_model, "with --endpoint: that is the server's; leave it out"
    for name, value in given.items():
        if value is not None:
            raise InputError(f"--{name} {said}")
    if config.endpoint is None:
        return
    check_url(config.endpoint)
    if not config.served:
        raise InputError("--model is missing: give the server's name for the model with --endpoint")


def endpoint_of(config: AsksServer, progress: Progress, *, reached: bool = True) -> Endpoint | None:
    """The server that `config` names, where it names one; `reached`, or as it is named."""
    if config.endpoint is None or config.served is None:
        return None
    from morfi.endpoint.engine import Endpoint, find_endpoint

    find = find_endpoint if reached else Endpoint.unreached
    return find(config.endpoint, config.served, chat=config.chat, limits=config.limits, say=progress.phase)
