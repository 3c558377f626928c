from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from morfi.errors import InputError
from morfi.serve.settings import (
    RESERVED,
    check_known,
    check_sound,
    engine_arguments,
    parse_overrides,
    prepare_process,
)

VARIABLES = (
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_NO_USAGE_STATS",
    "VLLM_LOGGING_LEVEL",
    "VLLM_LOGGING_STREAM",
    "TOKENIZERS_PARALLELISM",
    "VLLM_CPU_NUM_OF_RESERVED_CPU",
    "VLLM_CPU_OMP_THREADS_BIND",
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(), part, max_size=3),
    max_leaves=5,
)


@given(st.from_regex(r"[a-z][a-z_]{0,20}", fullmatch=True).filter(lambda key: key not in RESERVED), JSON)
def test_a_json_value_keeps_its_type(key: str, value: Any) -> None:
    assert parse_overrides([f"{key}={json.dumps(value)}"]) == {key: value}


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("max-num-seqs=64", {"max_num_seqs": 64}),
        (" block_size =32", {"block_size": 32}),
        ("kv_cache_dtype=auto", {"kv_cache_dtype": "auto"}),
        ("enforce_eager=true", {"enforce_eager": True}),
        ("path=a=b", {"path": "a=b"}),
        ("text=", {"text": ""}),
        ('config={"level": 3}', {"config": {"level": 3}}),
        ("x=NaN", {"x": "NaN"}),
        ("x=-Infinity", {"x": "-Infinity"}),
        (f"x={'9' * 5000}", {"x": "9" * 5000}),
    ],
)
def test_settings_are_read_as_json_or_else_as_text(pair: str, expected: dict[str, Any]) -> None:
    assert parse_overrides([pair]) == expected


def test_every_setting_can_be_stored_as_json() -> None:
    parsed = parse_overrides(["a=NaN", "b=[1, NaN]", "c=Infinity", "d=1e3"])
    json.dumps(parsed, allow_nan=False)
    assert math.isclose(parsed["d"], 1000)


@pytest.mark.parametrize("pair", ["max_num_seqs", "=3", " =3", ""])
def test_what_is_not_key_and_value_is_refused(pair: str) -> None:
    with pytest.raises(InputError, match="--engine takes key=value, got"):
        parse_overrides([pair])


@pytest.mark.parametrize("key", sorted(RESERVED))
def test_a_reserved_setting_is_refused_with_what_to_use(key: str) -> None:
    for spelled in (key, key.replace("_", "-")):
        with pytest.raises(InputError, match=f'"{key}" cannot be given: ') as caught:
            parse_overrides([f"{spelled}=x"])
        assert str(caught.value).endswith(RESERVED[key])


def test_what_is_reserved_is_vllms_and_holds_every_secret() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = {one.name for one in dataclasses.fields(AsyncEngineArgs)}
    assert not set(RESERVED) - known
    secret = re.compile(r"(^|_)(key|token|secret|password|credentials?)$")
    assert {name for name in known if secret.search(name)} <= set(RESERVED)


def test_a_refused_secret_is_not_repeated() -> None:
    with pytest.raises(InputError, match="as HF_TOKEN") as refused:
        parse_overrides(["hf-token=hf_abc"])
    assert "hf_abc" not in str(refused.value)


@pytest.mark.parametrize(("value", "json"), [("True", "true"), ("False", "false"), ("None", "null")])
def test_a_value_in_pythons_spelling_is_refused_with_that_of_json(value: str, json: str) -> None:
    with pytest.raises(InputError, match=f"values are JSON: enforce_eager={json}$"):
        parse_overrides([f"enforce_eager={value}"])


def test_a_setting_given_twice_is_refused_whatever_its_spelling() -> None:
    with pytest.raises(InputError, match='"max_num_seqs" is given twice'):
        parse_overrides(["max_num_seqs=1", "max-num-seqs=1"])


def test_an_unknown_setting_suggests_the_nearest() -> None:
    check_known({"max_num_seqs": 1}, ["max_num_seqs", "block_size"])
    with pytest.raises(InputError, match=r'no engine setting "max_num_seq"\. Did you mean "max_num_seqs"\?'):
        check_known({"max_num_seq": 1}, ["max_num_seqs", "block_size"])


@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize("gpu", [True, False])
def test_data_parallel_engines_are_refused(*, gpu: bool, seeded: bool) -> None:
    for pair in ("data_parallel_size=2", "data_parallel_rank=0", "data-parallel-backend=ray"):
        with pytest.raises(InputError, match=r'"data_parallel\w+" cannot be given: reports and refusals'):
            check_sound(parse_overrides([pair]), gpu=gpu, seeded=seeded)
    check_sound({"data_parallel_size": 1, "tensor_parallel_size": 2}, gpu=gpu, seeded=seeded)
    with pytest.raises(InputError, match="data_parallel_size"):
        engine_arguments(
            Path("m"), dtype="float32", context=9, seed=0, gpu=gpu, overrides={"data_parallel_size": 2}
        )


def test_answers_that_depend_on_no_batch_are_asked_of_vllm_on_a_gpu_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = parse_overrides(["deterministic=true"])
    check_known(overrides, ["max_num_seqs"])
    check_sound(overrides, gpu=True, seeded=True)
    with pytest.raises(InputError, match='"deterministic" cannot be given on a CPU'):
        check_sound(overrides, gpu=False, seeded=False)
    with pytest.raises(InputError, match="expected true or false"):
        check_sound({"deterministic": "yes"}, gpu=True, seeded=False)
    monkeypatch.setattr(os, "environ", {"VLLM_BATCH_INVARIANT": "0"})
    prepare_process(gpu=True, verbose=False, overrides={"deterministic": False})
    assert os.environ["VLLM_BATCH_INVARIANT"] == "0"
    prepare_process(gpu=True, verbose=False, overrides=overrides)
    assert os.environ["VLLM_BATCH_INVARIANT"] == "1"
    found = engine_arguments(Path("m"), dtype="bfloat16", context=9, seed=0, gpu=True, overrides=overrides)
    assert "deterministic" not in found


@pytest.mark.parametrize("value", ["true", "1"])
def test_prompts_in_parts_are_refused_on_a_cpu_where_a_seed_may_come(value: str) -> None:
    overrides = parse_overrides([f"enable_chunked_prefill={value}"])
    with pytest.raises(
        InputError, match='"enable_chunked_prefill" cannot be given on a CPU: a seeded request'
    ):
        check_sound(overrides | {"max_num_seqs": 4}, gpu=False, seeded=True)
    check_sound(overrides, gpu=True, seeded=True)
    check_sound(overrides, gpu=False, seeded=False)
    check_sound({"enable_chunked_prefill": False}, gpu=False, seeded=True)


@pytest.mark.parametrize("gpu", [True, False])
def test_overrides_win_and_nothing_else_changes(gpu: bool) -> None:
    def arguments(**overrides: Any) -> dict[str, Any]:
        return engine_arguments(
            Path("model"), dtype="bfloat16", context=512, seed=7, gpu=gpu, overrides=overrides
        )

    plain = arguments()
    assert (plain["model"], plain["dtype"], plain["seed"], plain["max_model_len"]) == (
        "model",
        "bfloat16",
        7,
        512,
    )
    assert (plain["load_format"], plain["trust_remote_code"]) == ("safetensors", False)
    assert (plain["config_format"], plain["tokenizer_mode"]) == ("hf", "hf")
    assert ("block_size" in plain) is not gpu
    assert plain.get("enable_chunked_prefill", True) is gpu
    assert arguments(block_size=64, max_num_seqs=3) == {**plain, "block_size": 64, "max_num_seqs": 3}


@pytest.mark.parametrize(
    ("gib", "overrides", "expected"),
    [
        (80, {}, (1024, 1024)),
        (80, {"max_num_seqs": 2048}, (2048, 2048)),
        (80, {"max_num_seqs": 64}, (64, None)),
        (80, {"enforce_eager": True}, (1024, None)),
        (80, {"cudagraph_capture_sizes": [1, 8]}, (1024, None)),
        (24, {}, (None, None)),
        (24, {"max_num_seqs": 64}, (64, None)),
    ],
)
def test_a_large_gpu_takes_many_sequences_and_has_graphs_for_all(
    monkeypatch: pytest.MonkeyPatch, gib: int, overrides: dict[str, Any], expected: tuple[Any, Any]
) -> None:
    monkeypatch.setattr("morfi.serve.settings._gpu_bytes", lambda: gib << 30)
    found = engine_arguments(
        Path("model"), dtype="bfloat16", context=512, seed=0, gpu=True, overrides=overrides
    )
    assert (found.get("max_num_seqs"), found.get("max_cudagraph_capture_size")) == expected


@pytest.mark.parametrize("context", [512, 16384])
def test_on_a_cpu_one_step_holds_the_longest_prompt(context: int) -> None:
    plain = engine_arguments(Path("model"), dtype="float32", context=context, seed=0, gpu=False, overrides={})
    assert plain["max_num_batched_tokens"] >= context


def test_a_compiled_engine_keeps_vllms_own_norm() -> None:
    def norms(**overrides: Any) -> bool:
        arguments = engine_arguments(
            Path("model"), dtype="float32", context=512, seed=0, gpu=False, overrides=overrides
        )
        return "ir_op_priority" in arguments

    assert norms()
    assert not norms(enforce_eager=False)


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("verbose", [True, False])
def test_the_environment_is_set_but_what_the_user_set_stays(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, verbose: bool
) -> None:
    monkeypatch.setattr(os, "environ", {"VLLM_NO_USAGE_STATS": "0", "VLLM_CPU_OMP_THREADS_BIND": "0-1"})
    prepare_process(gpu=gpu, verbose=verbose)
    spawns = {"VLLM_WORKER_MULTIPROC_METHOD"} if gpu else set()
    assert (
        set(os.environ) == set(VARIABLES[:5] if gpu else VARIABLES) | {"VLLM_CPU_OMP_THREADS_BIND"} | spawns
    )
    assert os.environ.get("VLLM_WORKER_MULTIPROC_METHOD") == ("spawn" if gpu else None)
    assert os.environ["VLLM_NO_USAGE_STATS"] == "0"
    assert os.environ["VLLM_CPU_OMP_THREADS_BIND"] == "0-1"
    assert os.environ["VLLM_LOGGING_LEVEL"] == ("INFO" if verbose else "ERROR")
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc takes the setting")
def test_memory_freed_by_one_step_is_there_for_the_next() -> None:
    code = (
        "import ctypes, resource, sys\n"
        "from morfi.serve.settings import keep_freed_memory\n"
        "if sys.argv[1] == 'keep': keep_freed_memory()\n"
        "def step(): x = [bytearray(b'x') * (16 << 20) for _ in range(4)]; del x\n"
        "for _ in range(3): step()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(20): step()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    faults = [
        int(subprocess.run([sys.executable, "-P", "-c", code, how], capture_output=True, check=True).stdout)
        for how in ("keep", "plain")
    ]
    assert faults[0] * 10 < faults[1]


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc takes the setting")
def test_memory_kept_by_an_engine_goes_back_to_the_system_when_it_is_freed() -> None:
    code = (
        "from pathlib import Path\n"
        "from morfi.device import free_memory\n"
        "from morfi.serve.settings import keep_freed_memory\n"
        "def pages(): return int(Path('/proc/self/statm').read_text().split()[1])\n"
        "keep_freed_memory(); free_memory(); before = pages()\n"
        "x = [bytearray(b'x') * (1 << 20) for _ in range(400)]; used = pages() - before; del x\n"
        "kept = pages() - before; free_memory(); print(used, kept, pages() - before)\n"
    )
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, check=True)
    used, kept, left = map(int, ran.stdout.split())
    assert kept > 0.9 * used
    assert left < 0.1 * used
