"""Requests that the engine core ends with the line: the answers are those of vLLM's own search for stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from morfi.checkpoints.vocabulary import line_ends
from morfi.serve.http.line_ends import LineEnds, ends_with_line

PIECES = ("\n", "\n\n", "\nQ", " \n", ".\n", "?\n", ".", "?", "a", "b", " ", "é", "Paris", "<0x0A>", "<0xC3>")
STOPS = ("\n", ".\n", "?\n", "\n\n", "a\n", " \n", "\nQ", "b", ".", "\n.", "Paris\n")


def words(*, blank: bool) -> Any:
    """A tokenizer whose tokens are these pieces; with `blank` as SentencePiece writes and drops blanks."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = ["x", *(piece.replace(" ", "\u2581") if blank else piece for piece in PIECES)]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    fast = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    fast.add_special_tokens([AddedToken("\n<end>", special=True)])
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if blank:
        steps.append(decoders.Strip(" ", 1, 0))
    fast.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="\n<end>")


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "blanks"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return words(blank=request.param)


@dataclass(frozen=True)
class Ended:
    """All that a client gets of an answer."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str | None
    stop_reason: int | str | None


def run(tokenizer: Any, tokens: Sequence[int], params: Any, line: LineEnds | None) -> tuple[Ended, int]:
    """The answer with these tokens, one per step, and how many were computed; with `line` as morfi does."""
    processor = OutputProcessor(tokenizer, log_stats=False)
    added = line.add(params) if line is not None else frozenset()

    async def all_parts() -> tuple[list[Any], int]:
        queue = RequestOutputCollector(params.output_kind, "r")
        core = EngineCoreRequest(
            request_id="inner",
            external_req_id="r",
            prompt_token_ids=[0],
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
        )
        processor.add_request(core, None, None, 0, queue)
        n_computed = 0

        async def engine() -> AsyncGenerator[Any, None]:
            nonlocal n_computed
            for place, token in enumerate(tokens):
                if not processor.request_states:
                    return
                n_computed += 1
                reason = FinishReason.LENGTH if place == len(tokens) - 1 else None
                stop = token in (params.stop_token_ids or ())
                output = EngineCoreOutput(
                    "inner",
                    [token],
                    finish_reason=FinishReason.STOP if stop else reason,
                    stop_reason=token if stop else None,
                )
                if line is not None:
                    line.leave_to_text([output], processor.request_states)
                processor.process_outputs([output])
                if (found := queue.get_nowait()) is not None:
                    yield found

        outputs = engine()
        if line is not None and added:
            outputs = line.ended(outputs, "r", added)
        return [part async for found in outputs for part in found.outputs], n_computed

    parts, n_computed = asyncio.run(all_parts())
    streamed = params.output_kind == RequestOutputKind.DELTA
    last = parts[-1]
    text = "".join(part.text for part in parts) if streamed else last.text
    ids = [token for part in (parts if streamed else parts[-1:]) for token in part.token_ids]
    return Ended(text, tuple(ids), last.finish_reason, last.stop_reason), n_computed


KINDS = st.sampled_from([RequestOutputKind.DELTA, RequestOutputKind.CUMULATIVE, RequestOutputKind.FINAL_ONLY])
ANSWERS = st.lists(st.integers(1, len(PIECES) - 2), min_size=1, max_size=8)  # without the half of a letter


def compared(tokenizer: Any, tokens: Sequence[int], **given: Any) -> Iterator[tuple[Ended, int]]:
    """As vLLM alone gives it, and as morfi does."""
    for line in (None, LineEnds(tokenizer)):
        yield run(tokenizer, tokens, SamplingParams(**given, max_tokens=len(tokens)), line)


def asked(*stop: str, kind: Any = RequestOutputKind.FINAL_ONLY, **given: Any) -> dict[str, Any]:
    return {"stop": list(stop), "output_kind": kind, **given}


ASKED = st.fixed_dictionaries(
    {
        "stop": st.lists(st.sampled_from(STOPS), min_size=1, max_size=4, unique=True),
        "output_kind": KINDS,
        "include_stop_str_in_output": st.booleans(),
        "min_tokens": st.sampled_from([0, 0, 2]),
        "stop_token_ids": st.lists(st.integers(0, len(PIECES)), max_size=2),
    }
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(tokens=ANSWERS, given=ASKED)
@example([13, 7, 1], asked(".\n", "\n"))
@example([9, 7, 1], asked("a\n", "\n", kind=RequestOutputKind.DELTA))
@example([9, 1], asked("\n", include_stop_str_in_output=True, stop_token_ids=[1]))
def test_answers_are_those_of_vllm_alone(tokenizer: Any, tokens: list[int], given: dict[str, Any]) -> None:
    tokens = [*tokens, 1, 1]  # else the last token ends the request for its length
    (alone, n_alone), (ours, n_ours) = compared(tokenizer, tokens, **given)
    assert ours == alone
    assert n_ours <= n_alone


def test_the_engine_core_ends_the_request_itself(tokenizer: Any) -> None:
    newline = tokenizer.convert_tokens_to_ids("\n")
    params = SamplingParams(stop=["\n", ".\n"], stop_token_ids=[7])
    added = LineEnds(tokenizer).add(params)
    assert newline in added
    assert params.stop_token_ids == [7, *added]


def test_only_what_is_seen_to_begin_with_a_newline_ends_the_line(
    make_tokenizer: Callable[..., Any],
) -> None:
    found = {
        blank: {words(blank=blank).decode([i]) for i in line_ends(words(blank=blank))}
        for blank in (False, True)
    }
    assert found[False] == found[True] == {"\n", "\n\n", "\nQ"}  # neither " \n", nor the special token
    assert line_ends(make_tokenizer()) == {3 + ord("\n")}


def test_where_the_text_loses_the_newline_the_answer_ends_with_it_all_the_same() -> None:
    tokenizer = words(blank=False)
    half, newline = (tokenizer.convert_tokens_to_ids(piece) for piece in ("<0xC3>", "<0x0A>"))
    (alone, _), (ours, _) = compared(tokenizer, [9, half, newline, 9], **asked("\n"))
    assert (alone.finish_reason, ours.finish_reason, ours.stop_reason) == ("length", "stop", "\n")
    assert ours.tokens == (9, half, newline)


@pytest.mark.parametrize(
    ("given", "ends"),
    [
        ({"stop": ["\n"]}, True),
        ({"stop": ["x", "\n"]}, True),
        ({"stop": ["\n\n"]}, False),
        ({}, False),
        ({"stop": ["\n"], "min_tokens": 2}, False),
        ({"stop": ["\n"], "include_stop_str_in_output": True}, True),
    ],
)
def test_which_requests_the_engine_core_ends_with_the_line(given: dict[str, Any], *, ends: bool) -> None:
    assert ends_with_line(SamplingParams(**given)) is ends
