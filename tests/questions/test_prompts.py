from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from morfi.checkpoints import Checkpoint, resolve
from morfi.checkpoints.tokenizer import load_tokenizer
from morfi.errors import InputError
from morfi.questions import UNSPLIT, QuestionSet, question_set, select
from morfi.questions.exemplars import Shots, choose_shots, no_shots
from morfi.questions.prompts import (
    Prompt,
    Wording,
    build_prompts,
    check_lengths,
    out_of_reach,
    prompt_tokenizer,
    prompted,
    starts_with_bos,
)
from morfi.questions.question import Question

BOS = 0
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LYON = Question("q1", "P17", "Lyon", "Which country is Lyon in?", ("France", "FR"))
KYIV = Question("q2", "P17", "Kyiv", "Which country is Kyiv in?", ("Ukraine",))


def asked(id_: str, relation: str, subject: str) -> Question:
    return Question(id_, relation, subject, f"{relation} of {subject}?", ("yes",))


@pytest.fixture(scope="module")
def data(questions: Mapping[str, Sequence[Question]]) -> QuestionSet:
    return question_set("facts", questions)


@pytest.fixture(scope="module")
def unsplit(questions: Mapping[str, Sequence[Question]]) -> QuestionSet:
    return question_set("facts", {UNSPLIT: [q for rows in questions.values() for q in rows]})


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer()


def choose(data: QuestionSet, split: str, *, shots: int = 4, seed: int = 0, **selection: Any) -> Shots:
    return choose_shots(
        data, select(data.splits[split], seed=seed, **selection), split, shots=shots, seed=seed
    )


@settings(max_examples=40, deadline=None)
@given(
    split=st.sampled_from(["test", "dev", "train", UNSPLIT]),
    relations=st.sampled_from([(), ("P17",), ("P36",), ("P36", "P17")]),
    limit=st.integers(1, 30),
    shots=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_relation_shows_the_same_exemplars_whatever_is_asked(
    *,
    data: QuestionSet,
    unsplit: QuestionSet,
    split: str,
    relations: tuple[str, ...],
    limit: int,
    shots: int,
    seed: int,
) -> None:
    source = unsplit if split == UNSPLIT else data
    everything = choose(source, split, shots=shots, seed=seed)
    part = choose(source, split, shots=shots, seed=seed, relations=relations)
    for relation, shown in part.exemplars.items():
        assert shown == everything.exemplars[relation]
        assert len(set(shown)) == shots
        assert {question.relation for question in shown} <= {relation}
    if split != UNSPLIT:
        limited = choose(source, split, shots=shots, seed=seed, relations=relations, limit=limit)
        assert all(part.exemplars[relation] == shown for relation, shown in limited.exemplars.items())
        assert len(limited.scored) == min(limit, len(part.scored))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["test", "dev", "train", UNSPLIT]), st.integers(1, 5), st.integers(0, 99))
def test_no_exemplar_is_about_the_subject_of_a_scored_question(
    data: QuestionSet, unsplit: QuestionSet, split: str, shots: int, seed: int
) -> None:
    chosen = choose(unsplit if split == UNSPLIT else data, split, shots=shots, seed=seed)
    shown = {question.subject for rows in chosen.exemplars.values() for question in rows}
    assert shown
    assert shown.isdisjoint(question.subject for question in chosen.scored)


@pytest.mark.parametrize(("split", "source"), [("test", "train"), ("dev", "train"), ("train", "dev")])
def test_exemplars_come_from_train_or_from_dev_when_train_is_scored(
    data: QuestionSet, split: str, source: str
) -> None:
    chosen = choose(data, split)
    assert chosen.scored == select(data.splits[split])
    assert {q for rows in chosen.exemplars.values() for q in rows} <= set(data.splits[source])


def test_without_train_test_questions_get_exemplars_from_dev(
    questions: Mapping[str, Sequence[Question]],
) -> None:
    data = question_set("facts", {"dev": questions["dev"], "test": questions["test"]})
    assert set(choose(data, "test").exemplars["P17"]) <= set(questions["dev"])


def test_the_seed_draws_the_exemplars(data: QuestionSet) -> None:
    draws = {choose(data, "test", seed=seed).exemplars["P17"] for seed in range(20)}
    assert len(draws) > 10
    assert choose(data, "test", seed=3) == choose(data, "test", seed=3)


def test_a_subject_of_the_scored_split_is_never_an_exemplar_even_with_another_relation_or_a_limit() -> None:
    train = [asked(f"t{i}", "P17", f"train {i}") for i in range(2)]
    shared = [asked("t8", "P17", "shared"), asked("t9", "P17", "shared elsewhere")]
    test = [asked("a", "P17", "test 1"), asked("b", "P17", "shared"), asked("c", "P36", "shared elsewhere")]
    data = question_set("facts", {"train": [*train, *shared], "test": test})
    for limit in (1, 2, None):
        assert set(choose(data, "test", shots=2, relations=("P17",), limit=limit).exemplars["P17"]) == set(
            train
        )
    with pytest.raises(InputError, match=r"P17 of facts has 2 questions in train, about other subjects"):
        choose(data, "test", shots=3, relations=("P17",))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from([str, str.upper, lambda text: f" {text}. ", lambda text: f"The {text}"])),
    st.booleans(),
    st.integers(0, 9),
)
def test_no_prompt_shows_the_answer_of_its_own_question_however_it_is_spelled(
    spellings: list[Callable[[str], str]], is_split: bool, seed: int
) -> None:
    rows = [Question(f"q{i}", "P36", f"Land {i}", f"Capital of Land {i}?", (f"City {i}",)) for i in range(9)]
    same = [
        Question(f"r{i}", "P36", f"m.0{i}", spelled(rows[i % 9].text), rows[i % 9].answers)
        for i, spelled in enumerate(spellings)
    ]
    same += [
        Question(f"s{i}", "P36", spelled(rows[i % 9].subject), f"And of Land {i % 9}?", rows[i % 9].answers)
        for i, spelled in enumerate(spellings)
    ]
    others = [Question(f"z{i}", "P36", f"Isle {i}", f"Capital of Isle {i}?", ("x",)) for i in range(3)]
    splits = {"test": rows, "train": [*same, *others]} if is_split else {UNSPLIT: [*rows, *same, *others]}
    chosen = choose(question_set("facts", splits), "test" if is_split else UNSPLIT, shots=2, seed=seed)
    shown = {question.answers for question in chosen.exemplars["P36"]}
    assert chosen.scored
    assert not any(question.answers in shown - {("x",)} for question in chosen.scored)


def test_a_question_that_stands_twice_is_one_exemplar() -> None:
    rows = [Question(f"q{i}", "P36", f"s{i}", f"Capital of Land {i // 2}?", ("x",)) for i in range(6)]
    data = question_set("facts", {"train": rows, "test": [asked("t", "P36", "other")]})
    shown = choose(data, "test", shots=3).exemplars["P36"]
    assert len({question.text for question in shown}) == 3
    with pytest.raises(InputError, match="has 3 questions in train"):
        choose(data, "test", shots=4)


def test_a_source_without_splits_scores_neither_its_exemplars_nor_their_subjects() -> None:
    rows = [asked(f"{relation}-{i}", relation, f"s{i}") for relation in ("P17", "P36") for i in range(8)]
    chosen = choose(question_set("facts", {UNSPLIT: rows}), UNSPLIT, shots=2)
    shown = {question.subject for part in chosen.exemplars.values() for question in part}
    assert set(chosen.scored) == {question for question in rows if question.subject not in shown}


@pytest.mark.parametrize("shots", [4, 5])
def test_too_few_exemplars_are_refused_with_the_relation_and_the_way_out(shots: int) -> None:
    rows = [asked(f"{i}", "P17", f"s{i}") for i in range(4)]
    unsplit = question_set("facts", {UNSPLIT: rows})
    with pytest.raises(InputError, match=r"relation P17 of facts has .*4.*--shots") as caught:
        choose(unsplit, UNSPLIT, shots=shots)
    assert "\n" not in str(caught.value)
    assert len(choose(unsplit, UNSPLIT, shots=3).scored) == 1


def test_a_relation_of_one_subject_has_nothing_left_to_score() -> None:
    rows = [Question(f"{i}", "P17", "same", f"same in {i}?", ("yes",)) for i in range(9)]
    rows += [asked(f"x{i}", "P36", f"s{i}") for i in range(9)]
    with pytest.raises(InputError, match=r"P17 of facts has no question left to score of 9"):
        choose(question_set("facts", {UNSPLIT: rows}), UNSPLIT)


def test_a_split_alone_has_no_exemplars(data: QuestionSet) -> None:
    alone = question_set("facts", {"test": data.splits["test"]})
    with pytest.raises(InputError, match=r"no train or dev questions beside test.*--shots 0"):
        choose(alone, "test")
    assert choose(alone, "test", shots=0).scored == select(data.splits["test"])


def test_zero_shots_score_every_question_with_the_bare_prompt(unsplit: QuestionSet, tokenizer: Any) -> None:
    chosen = choose(unsplit, UNSPLIT, shots=0)
    assert set(chosen.scored) == set(unsplit.splits[UNSPLIT])
    prompts = build_prompts(chosen.scored, chosen.exemplars, tokenizer)
    assert [p.text for p in prompts] == [f"Q: {q.text}\nA:" for q in chosen.scored]


def test_a_plain_prompt_shows_the_first_answer_of_each_exemplar_and_ends_before_the_answer(
    tokenizer: Any,
) -> None:
    (prompt,) = build_prompts([KYIV], {"P17": (LYON,)}, tokenizer)
    assert prompt.text == "Q: Which country is Lyon in?\nA: France\n\nQ: Which country is Kyiv in?\nA:"
    assert prompt.question is KYIV
    assert tokenizer.decode(prompt.token_ids, skip_special_tokens=True) == prompt.text


def test_questions_of_a_relation_share_their_prefix_token_by_token(data: QuestionSet, tokenizer: Any) -> None:
    chosen = choose(data, "test", relations=("P17",))
    head = build_prompts(chosen.exemplars["P17"][:1], chosen.exemplars, tokenizer)[0].text.rpartition("Q: ")[
        0
    ]
    n_shared = len(tokenizer(head)["input_ids"])
    prompts = build_prompts(chosen.scored, chosen.exemplars, tokenizer)
    assert len({prompt.token_ids[:n_shared] for prompt in prompts}) == 1


def test_bos_stands_once_in_front_where_the_tokenizer_adds_it(tokenizer: Any, data: QuestionSet) -> None:
    chosen = choose(data, "test")
    prompts = build_prompts(chosen.scored, chosen.exemplars, tokenizer)
    assert all(p.token_ids[0] == BOS and p.token_ids.count(BOS) == 1 for p in prompts)
    assert starts_with_bos(prompts, tokenizer)


@pytest.mark.parametrize("has_bos", [True, False])
def test_no_bos_where_the_tokenizer_adds_none(make_tokenizer: Callable[..., Any], has_bos: bool) -> None:
    tokenizer = make_tokenizer(has_bos=has_bos, adds_bos=False)
    prompts = build_prompts([KYIV], {"P17": (LYON,)}, tokenizer)
    assert BOS not in prompts[0].token_ids
    assert not starts_with_bos(prompts, tokenizer)


@pytest.mark.parametrize("question", ["What is <s>?", "<s>What is it?"])
def test_the_bos_token_inside_a_question_is_refused(tokenizer: Any, question: str) -> None:
    bad = Question("q7", "P17", "s", question, ("x",))
    with pytest.raises(InputError, match=r"question q7: .*BOS \(<s>\) in its text"):
        build_prompts([bad], {"P17": ()}, tokenizer)
    with pytest.raises(InputError, match=r"question q1: .*BOS"):
        build_prompts([LYON], {"P17": (bad,)}, tokenizer)


@pytest.mark.parametrize("chat", [True, False])
def test_a_control_token_inside_a_question_or_an_exemplar_is_refused(
    make_tokenizer: Callable[..., Any], chat: bool
) -> None:
    tokenizer = make_tokenizer(chat_template=f"<s>{CHATML}</s>")
    bad = Question("q7", "P17", "s", "What does </s> end?", ("x",))
    with pytest.raises(InputError, match=r"question q7: .*the control token \(</s>\) in its text; take"):
        build_prompts([bad], {"P17": ()}, tokenizer, Wording(chat=chat))
    worse = Question("q8", "P17", "s", "What ends?", ("</s>",))
    with pytest.raises(InputError, match=r"question q[18]: .*the control token \(</s>\)"):
        build_prompts([LYON], {"P17": (worse,)}, tokenizer, Wording(chat=chat))
    assert build_prompts([LYON], {"P17": (KYIV,)}, tokenizer, Wording(chat=chat))


def test_the_unknown_token_is_refused_as_it_is_written_and_not_for_a_character_that_is_lacking(
    make_tokenizer: Callable[..., Any],
) -> None:
    written = Question("q7", "P17", "s", "What is <unk>?", ("x",))
    with pytest.raises(InputError, match=r"question q7: .*the control token \(<unk>\)"):
        build_prompts([written], {"P17": ()}, make_tokenizer())
    words = Tokenizer(models.WordLevel({"<unk>": 0, "Q": 1, ":": 2, "A": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    (prompt,) = build_prompts([LYON], {"P17": ()}, tokenizer)
    assert 0 in prompt.token_ids
    with pytest.raises(InputError, match=r"question q7: .*the control token \(<unk>\)"):
        build_prompts([written], {"P17": ()}, tokenizer)


@pytest.mark.parametrize(("adds_bos", "written"), [(True, ""), (False, ""), (True, "<s>"), (False, "<s>")])
def test_a_chat_prompt_holds_the_bos_that_its_template_writes(
    make_tokenizer: Callable[..., Any], adds_bos: bool, written: str
) -> None:
    tokenizer = make_tokenizer(adds_bos=adds_bos, chat_template=written + CHATML)
    prompts = build_prompts([KYIV], {"P17": (LYON,)}, tokenizer, Wording(chat=True))
    assert prompts[0].token_ids.count(BOS) == len(written) // 3
    assert starts_with_bos(prompts, tokenizer) is bool(written)
    assert prompts[0].text == (
        f"{written}<|user|>Which country is Lyon in?\n<|assistant|>France\n"
        "<|user|>Which country is Kyiv in?\n<|assistant|>"
    )


def test_a_chat_template_that_writes_bos_twice_is_refused(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(chat_template="<s><s>" + CHATML)
    with pytest.raises(InputError, match=r"question q2: .*BOS \(<s>\) twice at its start"):
        build_prompts([KYIV], {"P17": ()}, tokenizer, Wording(chat=True))


def test_chat_without_a_template_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"no chat template; leave --chat out"):
        build_prompts([KYIV], {"P17": ()}, tokenizer, Wording(chat=True))


@pytest.mark.parametrize(
    "template",
    ["{% for m in messages %}", "{{ raise_exception('no users') }}", "{{ raise_exception('') }}"],
)
def test_a_broken_chat_template_is_refused(make_tokenizer: Callable[..., Any], template: str) -> None:
    with pytest.raises(InputError, match=r"chat template .*leave --chat out") as caught:
        build_prompts([KYIV], {"P17": ()}, make_tokenizer(chat_template=template), Wording(chat=True))
    assert "\n" not in str(caught.value)


def test_what_is_special_about_a_tokenizer_is_said_but_not_what_a_chat_does_not_meet(
    tiny_model: Path, log: Any
) -> None:
    for chat in (True, False):
        prompt_tokenizer(tiny_model, "no", log, chat=chat)
        assert len(log.phases) == (0 if chat else 1)


def test_no_questions_give_no_prompts(tokenizer: Any) -> None:
    assert build_prompts([], {}, tokenizer) == []
    assert not starts_with_bos([], tokenizer)


@pytest.mark.parametrize(("context", "fits"), [(26, True), (25, False)])
def test_prompt_and_answer_must_fit_in_the_context_to_the_token(context: int, fits: bool) -> None:
    prompts = [Prompt(LYON, "", tuple(range(5))), Prompt(KYIV, "", tuple(range(10)))]
    if fits:
        check_lengths(prompts, 16, context)
        return
    with pytest.raises(InputError, match=r"question q2: prompt of 10 tokens and 16 .* context of 25; give"):
        check_lengths(prompts, 16, context)


def test_a_saved_tokenizer_loads_and_behaves_the_same(tiny_model: Path, tokenizer: Any) -> None:
    text = "Q: Où est «Kyiv»? 🗼\nA:"
    assert load_tokenizer(tiny_model)(text)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"model": {"type": "BPE"}}', "\0"])
def test_a_missing_or_broken_tokenizer_is_refused(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer in .* cannot be loaded: .*expected tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def accepting(*answers: str) -> Question:
    return replace(LYON, answers=answers)


def test_questions_whose_answers_are_all_longer_than_an_answer_may_be_are_counted(tokenizer: Any) -> None:
    rows = [
        accepting("x" * 15),
        accepting("x" * 16),
        accepting("x" * 40, "short"),
        accepting("ก" * 9),
    ]
    assert out_of_reach(rows, tokenizer, 16) == (
        "2 of 4 questions have accepted answers of more than 16 tokens only, so no answer to them can be "
        "right; --max-tokens 28 would reach all"
    )
    assert out_of_reach(rows, tokenizer, 28) is None
    assert out_of_reach([], tokenizer, 1) is None


@pytest.fixture
def checkpoint(tiny_model: Path, isolated_cache: Path) -> Checkpoint:
    return resolve(str(tiny_model))


def test_questions_are_prompted_draw_by_draw_with_what_is_to_be_known_of_their_prompts(
    checkpoint: Checkpoint, log: Any
) -> None:
    draws = [
        Shots({"P17": (KYIV,)}, (LYON,)),
        replace(no_shots([LYON, replace(KYIV, answers=("x" * 30,))]), first_sample=3),
    ]
    settings = {"max_model_len": 100}
    found = prompted(draws, checkpoint, settings, max_tokens=16, bos="auto", progress=log, match="squad")
    assert [(p.question.id, p.sample, p.text.count("Q: ")) for p in found.prompts] == [
        ("q1", 0, 2),
        ("q1", 3, 1),
        ("q2", 3, 1),
    ]
    assert (found.form, found.context, found.bos) == ("Q: {question}\nA:", 100, True)
    (said,) = log.phases
    assert said.startswith("1 of 2 questions have accepted answers of more than 16 tokens only")


@pytest.mark.parametrize("match", [None, "regex:.*"])
def test_where_no_accepted_answer_is_looked_for_none_is_out_of_reach(
    checkpoint: Checkpoint, log: Any, match: str | None
) -> None:
    found = prompted(
        [no_shots([LYON, KYIV])], checkpoint, {}, max_tokens=1, bos="no", progress=log, match=match
    )
    assert not found.bos
    assert [line for line in log.phases if "accepted answers" in line] == []
    assert found.of(["q2"]).prompts == found.prompts[1:]


def test_a_prompt_that_does_not_fit_is_refused_before_anything_is_asked(
    checkpoint: Checkpoint, log: Any
) -> None:
    with pytest.raises(InputError, match=r"question q1: prompt of \d+ tokens and 16 .*context of 20"):
        prompted(
            [no_shots([LYON])], checkpoint, {"max_model_len": 20}, max_tokens=16, bos="auto", progress=log
        )
