"""Prompt templates of one's own: what they write, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from morfi.errors import InputError
from morfi.questions.exemplars import Shots
from morfi.questions.prompts import ASKED, CHAT, Wording, build_prompts, worded
from morfi.questions.question import Question
from morfi.questions.templates import PromptTemplate, read_template

LYON = Question("1", "P17", "Lyon", "In which country is Lyon?", ("France",))
KYIV = Question("2", "P17", "Kyiv", "In which country is Kyiv?", ("Ukraine", "UA"))
OSLO = Question("3", "P17", "Oslo", "In which country is Oslo?", ("Norway",))
SOURCE = """{% for one in exemplars %}
{{ one.question }} => {{ one.answer }}
{% endfor %}
({{ relation }}, {{ subject }}) {{ question }} =>
"""


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], PromptTemplate]:
    """Reads a template of this source."""

    def read(source: str) -> PromptTemplate:
        (tmp_path / "own.j2").write_text(source)
        return read_template(str(tmp_path / "own.j2"))

    return read


def test_a_template_writes_the_question_after_its_exemplars(
    written: Callable[[str], PromptTemplate],
) -> None:
    template = written(SOURCE)
    assert template.write(LYON, (KYIV, OSLO)) == (
        "In which country is Kyiv? => Ukraine\nIn which country is Oslo? => Norway\n"
        "(P17, Lyon) In which country is Lyon? =>"
    )
    assert template.sha256 == hashlib.sha256(SOURCE.encode()).hexdigest()


def test_prompts_are_what_the_template_writes(
    written: Callable[[str], PromptTemplate], make_tokenizer: Callable[..., object]
) -> None:
    wording = Wording(template=written(SOURCE))
    texts = [wording.template.write(one, (KYIV,)) for one in (LYON, OSLO)] if wording.template else []
    prompts = build_prompts((LYON, OSLO), {"P17": (KYIV,)}, make_tokenizer(), wording)
    assert [one.text for one in prompts] == texts
    assert [len(one.token_ids) for one in prompts] == [1 + len(text.encode()) for text in texts]
    asked = worded([Shots({"P17": (KYIV,)}, (LYON, OSLO), first_sample=4)], wording)
    assert [one.text for one in asked.prompts] == texts
    assert {one.sample for one in asked.prompts} == {4}
    assert asked.form == SOURCE


def test_a_chat_has_the_text_of_the_system_first_and_the_templates_as_its_only_turn(
    written: Callable[[str], PromptTemplate], make_tokenizer: Callable[..., object]
) -> None:
    shots = Shots({"P17": (KYIV,)}, (LYON,))
    plain = Wording(chat=True, system="Be brief.")
    (prompt,) = worded([shots], plain).prompts
    assert [(one["role"], one["content"]) for one in json.loads(prompt.text)] == [
        ("system", "Be brief."),
        ("user", KYIV.text),
        ("assistant", "Ukraine"),
        ("user", LYON.text),
    ]
    own = Wording(chat=True, system="Be brief.", template=written("{{ question }} In a word."))
    (prompt,) = worded([shots], own).prompts
    assert [(one["role"], one["content"]) for one in json.loads(prompt.text)] == [
        ("system", "Be brief."),
        ("user", f"{LYON.text} In a word."),
    ]
    tokenizer = make_tokenizer(
        chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }}|{% endfor %}"
    )
    (prompt,) = build_prompts((LYON,), {"P17": ()}, tokenizer, own)
    assert prompt.text == f"system: Be brief.|user: {LYON.text} In a word.|"
    forms = (Wording(), Wording(chat=True), plain, own)
    assert len({one.form for one in forms}) == 4
    assert [one.form for one in forms[:2]] == [ASKED, CHAT]


@pytest.mark.parametrize("held", ["question", "system", "template"])
def test_a_control_token_in_a_chat_is_refused_wherever_it_comes_from(
    written: Callable[[str], PromptTemplate], make_tokenizer: Callable[..., object], held: str
) -> None:
    tokenizer = make_tokenizer(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    question = Question("9", "P17", "x", "Where is </s>?", ("France",)) if held == "question" else LYON
    wording = Wording(
        chat=True,
        system="</s>" if held == "system" else "Be brief.",
        template=written("</s>{{ question }}" if held == "template" else "{{ question }}"),
    )
    with pytest.raises(InputError, match=r"would hold the control token \(</s>\)"):
        build_prompts((question,), {"P17": ()}, tokenizer, wording)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ answer }}", r"question 1: 'answer' is undefined; a template has question, subject"),
        ("{{ question }}{{ exemplars[0].id }}", "question 1: .*has no attribute 'id'"),
        ("{{ question.__class__ }}", "question 1: access to attribute '__class__' of 'str' object is unsafe"),
        ("{{ exemplars.append(1) }}", "question 1: access to attribute 'append' of 'list' object is unsafe"),
        ("{% include '/etc/passwd' %}", "question 1: no loader"),
        ("{% for i in range(9999999) %}x{% endfor %}", "question 1: Range too big"),
        ("{{ question + 1 }}", "question 1: can only concatenate str"),
        ("{{ 1 / 0 }}", "question 1: division by zero"),
        ("{{ exemplars[5].question }}", "question 1: .*has no element 5"),
        ('{{ question }}{{ "\\ud800" }}', "question 1: .*surrogates not allowed"),
        ("{{ question }}\0", "question 1: the prompt holds NUL"),
        ("", "question 1: the prompt is empty"),
        ("{% if false %}{{ question }}{% endif %}\n \n", "question 1: the prompt is empty"),
        ("{{ question }}\nFrance", "question 1: the prompt ends with a line that is the answer itself"),
    ],
)
def test_a_template_that_gives_no_prompt_is_refused_with_the_question(
    written: Callable[[str], PromptTemplate], source: str, said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        written(source).write(LYON, (KYIV,))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["Where is it?", "{{ relation }}", "{{ exemplars[0].question }}"])
def test_questions_that_a_template_makes_the_same_are_refused(
    written: Callable[[str], PromptTemplate], source: str
) -> None:
    with pytest.raises(InputError, match=r"questions 1 and 3 have the same prompt; write \{\{ question \}\}"):
        worded([Shots({"P17": (KYIV,)}, (LYON, OSLO))], Wording(template=written(source)))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"\xff\xfe", "can't decode"),
        (b"\n{{ question", "line 2: .*expected Jinja"),
        (b"{% for x in exemplars %}", "line 1: .*expected Jinja"),
        (b"{% frobnicate %}", "unknown tag 'frobnicate'"),
    ],
)
def test_a_file_that_is_no_template_is_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "own.j2"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_template(str(path))
    assert str(caught.value).startswith(f"--prompt-template {path}")
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_template(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Is a directory"):
        read_template(str(tmp_path))
