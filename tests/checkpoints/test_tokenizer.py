from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from morfi.cache import Cache
from morfi.checkpoints.tokenizer import (
    BOS_CHOICES,
    Frame,
    check_bos,
    control_tokens,
    frame_of,
    load_tokenizer,
    needs_bos,
    open_tokenizer,
    tokenizer_folder,
)
from morfi.errors import InputError

CORPUS = ["Q: In which country is Lyon?\nA: France\n\nQ: the quick brown fox 0123456789 jumps"] * 9
TEXT = "Q: In which  country is Lyon?\nA: 12\n\n Київ"
END = "<|im_end|>"


@dataclass(frozen=True)
class Form:
    """One way in which a folder may hold a tokenizer."""

    kind: str = "bytes"
    class_name: str | None = "PreTrainedTokenizerFast"
    model_type: str = "gpt2"
    bos: str = "<s>"
    llama_order: bool = False  # <unk>, BOS, </s> are the first three
    before: bool = True  # the post-processor of tokenizer.json
    after: bool = False
    add_bos_token: bool | None = None  # tokenizer_config.json
    add_eos_token: bool | None = None
    has_end: bool = False  # an end token that is added and not special

    @property
    def special(self) -> list[str]:
        return (
            ["<unk>", self.bos, "</s>", "<pad>"] if self.llama_order else ["<pad>", self.bos, "</s>", "<unk>"]
        )


def _backend(kind: str, special: list[str]) -> Tokenizer:
    if kind == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=330, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    else:
        made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        replace = normalizers.Replace(" ", "▁")
        steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if kind == "prefix":
            made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
            steps.append(decoders.Strip(" ", 1, 0))
        else:
            made.normalizer = replace
        made.decoder = decoders.Sequence(steps)
        trainer = trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))],
            show_progress=False,
        )
    made.train_from_iterator(CORPUS, trainer)
    return made


def write(folder: Path, form: Form) -> Tokenizer:
    """Writes a folder of this form; the tokenizer of its tokenizer.json alone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    made = _backend(form.kind, form.special)
    if form.has_end:
        made.add_tokens([AddedToken(END, special=False, normalized=False)])
    single = [*([form.bos] if form.before else []), "$A", *(["</s>"] if form.after else [])]
    if form.before or form.after:
        marks = [(token, made.token_to_id(token)) for token in (form.bos, "</s>")]
        made.post_processor = processors.TemplateProcessing(single=single, special_tokens=marks)
    made.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": form.class_name,
        "bos_token": form.bos,
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "add_bos_token": form.add_bos_token,
        "add_eos_token": form.add_eos_token,
    }
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text(json.dumps({"model_type": form.model_type}))
    if form.has_end:
        ends = [made.token_to_id("</s>"), made.token_to_id(END)]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


FORMS = st.builds(
    Form,
    kind=st.sampled_from(["bytes", "plain", "prefix"]),
    class_name=st.sampled_from(
        [
            None,
            "PreTrainedTokenizerFast",
            "LlamaTokenizer",
            "LlamaTokenizerFast",
            "CodeLlamaTokenizer",
            "GPT2Tokenizer",
            "GemmaTokenizerFast",
            "Qwen2TokenizerFast",
            "CohereTokenizerFast",
        ]
    ),
    model_type=st.sampled_from(["llama", "gemma2", "gemma3_text", "gpt2", "qwen2", "mistral"]),
    bos=st.sampled_from(["<s>", "<bos>", "<|begin_of_text|>"]),
    llama_order=st.booleans(),
    before=st.booleans(),
    after=st.booleans(),
    add_bos_token=st.sampled_from([None, True, False]),
    add_eos_token=st.sampled_from([None, True, False]),
    has_end=st.booleans(),
)


def _expects_bos(form: Form, bos: str) -> bool:
    """The documented rule, said again."""
    if bos != "auto":
        return bos == "yes"
    if form.bos == "<|begin_of_text|>" or (form.bos == "<bos>" and form.model_type.startswith("gemma")):
        return True
    is_llama = form.bos == "<s>" and form.llama_order and form.model_type in ("llama", "mistral")
    return form.before or form.add_bos_token is True or (is_llama and form.add_bos_token is None)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=FORMS,
    bos=st.sampled_from(BOS_CHOICES),
    text=st.text(st.sampled_from("Q:ALyon \n\t▁0127?é東🗼xyz"), max_size=30),
)
@pytest.mark.long
def test_a_prompt_has_the_tokens_of_the_folders_own_file_with_bos_by_the_rule(
    tmp_path: Path, form: Form, bos: str, text: str
) -> None:
    own = write(tmp_path / "model", form)
    found = open_tokenizer(tmp_path / "model", bos)
    texts = [TEXT, text]
    before: list[Any] = [own.token_to_id(form.bos)] if _expects_bos(form, bos) else []
    expected = [before + own.encode(each, add_special_tokens=False).ids for each in texts]
    assert found.tokenizer(texts)["input_ids"] == expected
    assert found.tokenizer.batch_decode(expected, skip_special_tokens=True) == own.decode_batch(expected)
    assert (found.tokenizer.bos_token, found.tokenizer.eos_token) == (form.bos, "</s>")
    # What others load from the folder that they are given.
    folder = tokenizer_folder(found, tmp_path / "model", Cache(tmp_path / "cache"))
    assert _auto(folder)(texts)["input_ids"] == expected


def _auto(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, mistral_format=False)


@pytest.mark.parametrize(
    ("form", "changed"),
    [
        (Form(), []),
        (Form(kind="bytes", class_name="LlamaTokenizerFast"), ["tokenizer"]),
        (Form(kind="plain", class_name="LlamaTokenizer"), ["tokenizer"]),
        (Form(after=True), ["eos"]),
        (Form(add_bos_token=True, add_eos_token=True, before=False), ["bos"]),
        (Form(add_bos_token=False), []),
        (Form(before=False, model_type="gemma3_text", bos="<bos>"), ["bos"]),
        (Form(before=False, bos="<|begin_of_text|>", add_bos_token=False), ["bos"]),
        (Form(before=False, model_type="llama", llama_order=True), ["bos"]),
        (Form(before=False, model_type="llama", llama_order=True, add_bos_token=False), []),
        (Form(before=False, model_type="llama"), []),
    ],
)
def test_what_is_otherwise_than_in_transformers_is_said_in_a_line(
    tmp_path: Path, form: Form, changed: list[str]
) -> None:
    write(tmp_path / "model", form)
    found = open_tokenizer(tmp_path / "model")
    assert list(found.changes) == changed
    assert all("\n" not in line for line in found.changes.values())
    if not changed:
        assert found.as_auto
        assert tokenizer_folder(found, tmp_path / "model", Cache(tmp_path / "cache")) == tmp_path / "model"
        assert not (tmp_path / "cache").exists()


def test_bos_is_asked_for_in_words_and_a_model_without_one_has_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r'--bos is "yess".*Did you mean "yes"'):
        check_bos("yess")
    write(tmp_path / "model", Form(before=False))
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}))
    with pytest.raises(InputError, match=r"--bos yes: the tokenizer in .* has no BOS token"):
        load_tokenizer(tmp_path / "model", "yes")
    assert load_tokenizer(tmp_path / "model", "no")(TEXT)["input_ids"]


@pytest.mark.parametrize(
    ("model_type", "bos", "needed"),
    [
        ("gemma", "<bos>", True),
        ("gemma2", "<bos>", True),
        ("gemma3n_text", "<bos>", True),
        ("recurrent_gemma", "<bos>", True),
        ("other", "<bos>", False),
        ("llama4_text", "<|begin_of_text|>", True),
        ("qwen2", "<｜begin▁of▁sentence｜>", True),  # noqa: RUF001
        ("cohere2", "<BOS_TOKEN>", True),
        ("llama", "<|im_start|>", False),
        ("gpt2", "<|endoftext|>", False),
        ("gpt2", None, False),
    ],
)
def test_families_that_need_bos(model_type: str, bos: str | None, needed: bool) -> None:
    assert needs_bos(model_type, bos, ["a", "b", "c"], told=None) is needed
    assert needs_bos(model_type, bos, ["a", "b", "c"], told=False) is needed


def test_a_family_without_its_bos_in_the_settings_finds_it_in_the_vocabulary(tmp_path: Path) -> None:
    own = write(tmp_path / "model", Form(before=False, model_type="gemma3_text", bos="<bos>"))
    path = tmp_path / "model" / "tokenizer_config.json"
    path.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}))
    tokenizer = load_tokenizer(tmp_path / "model")
    assert tokenizer.bos_token == "<bos>"
    assert tokenizer("a")["input_ids"][0] == own.token_to_id("<bos>")


@pytest.mark.parametrize("settings", [None, {"tokenizer_class": "PreTrainedTokenizerFast"}])
@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize(
    "form",
    [
        Form(before=False, model_type="llama", bos="<|begin_of_text|>"),
        Form(before=False, model_type="deepseek_v3", bos="<｜begin▁of▁sentence｜>"),  # noqa: RUF001
        Form(before=False, model_type="cohere2", bos="<BOS_TOKEN>"),
        Form(before=False, model_type="mistral", bos="<s>", llama_order=True),
    ],
)
def test_a_family_whose_tokenizer_names_no_bos_has_that_of_config_json_and_a_line_says_so(
    tmp_path: Path, form: Form, inner: bool, settings: dict[str, Any] | None
) -> None:
    folder, bos, model_type = tmp_path / "model", form.bos, form.model_type
    number = write(folder, form).token_to_id(bos)
    ids = {"bos_token_id": number}
    config = {"model_type": model_type, **({"text_config": ids} if inner else ids)}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").unlink()
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for asked in ("auto", "yes"):
        found = open_tokenizer(folder, asked)
        assert found.tokenizer("a")["input_ids"][0] == number
        assert found.tokenizer.bos_token == bos
        assert f"BOS ({bos}) is put in front of every prompt" in found.changes["bos"]
        other = _auto(tokenizer_folder(found, folder, Cache(tmp_path / "cache")))
        assert (other.bos_token, other("a")["input_ids"]) == (bos, found.tokenizer("a")["input_ids"])
    assert number not in load_tokenizer(folder, "no")("a")["input_ids"]


def test_a_tokenizer_rebuilt_with_an_unknown_token_that_is_not_there_is_another(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    own = _backend("bytes", ["<bos>", "<eos>"])
    own.add_special_tokens(["<bos>", "<eos>"])
    folder.mkdir()
    own.save(str(folder / "tokenizer.json"))
    bos = own.token_to_id("<bos>")
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3_text", "bos_token_id": bos}))
    found = open_tokenizer(folder)
    assert list(found.changes) == ["tokenizer", "bos"]
    assert found.tokenizer(TEXT)["input_ids"] == [bos, *own.encode(TEXT).ids]


def _words(folder: Path, vocabulary: dict[str, int]) -> Path:
    """A folder whose tokenizer knows these words alone and puts <s> in front."""
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=None))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens(["<s>", "</s>"])
    mark = ("<s>", made.token_to_id("<s>"))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[mark])
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def test_bos_is_known_in_front_whatever_words_a_vocabulary_has(tmp_path: Path) -> None:
    folder = _words(tmp_path / "model", {"Q": 0, ":": 1, "Where": 2, "<s>": 3, "</s>": 4})
    found = open_tokenizer(folder)
    assert frame_of(found.tokenizer).before == (3,)
    assert found.as_auto
    without = open_tokenizer(folder, "no")
    assert without.tokenizer("Where")["input_ids"] == [2]
    other = _auto(tokenizer_folder(without, folder, Cache(tmp_path / "cache")))
    assert other("Q: Where")["input_ids"] == [0, 1, 2]


def test_a_text_that_has_no_tokens_does_not_tell_what_stands_around_it(tmp_path: Path) -> None:
    # Bytes without an unknown token: what is not in the vocabulary vanishes.
    made = Tokenizer(models.BPE({"a": 0, "<s>": 1, "</s>": 2}, []))
    made.add_special_tokens(["<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder = _words(tmp_path / "model", {"Q": 0})
    made.save(str(folder / "tokenizer.json"))
    assert frame_of(load_tokenizer(folder)) == Frame((1,), ())


def test_a_tokenizer_without_a_word_is_refused(tmp_path: Path) -> None:
    folder = _words(tmp_path / "model", {"<s>": 0, "</s>": 1})
    with pytest.raises(InputError, match=r"the tokenizer in .* has tokens for no text"):
        open_tokenizer(folder)


def test_config_json_names_no_bos_for_other_families(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    number = write(folder, Form(before=False, bos="<|endoftext|>")).token_to_id("<|endoftext|>")
    (folder / "config.json").write_text(json.dumps({"model_type": "phi", "bos_token_id": number}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    found = open_tokenizer(folder)
    assert found.as_auto
    assert not found.changes


def test_an_end_token_of_the_generation_settings_is_a_control_token(tmp_path: Path) -> None:
    own = write(tmp_path / "model", Form(has_end=True))
    tokenizer = load_tokenizer(tmp_path / "model")
    end = own.token_to_id(END)
    assert end in control_tokens(tokenizer)
    ids = [*own.encode("a", add_special_tokens=False).ids, end]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a"


def test_a_token_that_is_appended_and_ends_nothing_is_refused(tmp_path: Path) -> None:
    own = write(tmp_path / "model", Form())
    own.post_processor = processors.TemplateProcessing(
        single="$A Q", special_tokens=[("Q", own.token_to_id("Q"))]
    )
    own.save(str(tmp_path / "model" / "tokenizer.json"))
    with pytest.raises(InputError, match=r"appends Q to every text.*save it without"):
        load_tokenizer(tmp_path / "model")


@pytest.mark.parametrize("name", ["tekken.json", "sentencepiece.bpe.model", "vocab.txt"])
def test_a_vocabulary_of_another_kind_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(
        InputError, match=rf"tokenizer in {name} only; expected tokenizer.json.*save_pretrained"
    ):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
def test_a_sentencepiece_model_gives_its_own_pieces_or_is_refused(
    tmp_path: Path, prefix: bool, rule: str
) -> None:
    spm = pytest.importorskip("sentencepiece")
    lines = [line.replace("\n", " ") for line in CORPUS]
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name=rule,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    own = spm.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    if rule == "identity":
        for text in (TEXT, f" {TEXT} "):
            assert load_tokenizer(tmp_path)(text)["input_ids"] == [1, *own.encode(text)]
        return
    with pytest.raises(InputError, match=r"LlamaTokenizer splits texts otherwise than .*tokenizer\.model"):
        load_tokenizer(tmp_path)


def test_the_chat_template_and_added_tokens_stay_where_the_file_is_taken(tmp_path: Path) -> None:
    own = write(tmp_path / "model", Form(kind="bytes", class_name="LlamaTokenizerFast"))
    path = tmp_path / "model" / "tokenizer_config.json"
    n = own.get_vocab_size()
    added = {str(n): {"content": "<|tool|>", "special": True}}
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"chat_template": "{{ messages }}", "added_tokens_decoder": added}))
    tokenizer = load_tokenizer(tmp_path / "model")
    assert tokenizer.chat_template == "{{ messages }}"
    assert tokenizer("<|tool|>", add_special_tokens=False)["input_ids"] == [n]
    assert n in control_tokens(tokenizer)


def test_a_file_that_transformers_rebuilds_to_nothing_is_followed(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    made = make_tokenizer(adds_bos=False)
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}), encoding="utf-8")
    found = open_tokenizer(tmp_path)
    assert found.tokenizer("Lyon")["input_ids"] == [byte + 3 for byte in b"Lyon"]
    assert set(found.changes) <= {"tokenizer"}
