"""A run as lm-evaluation-harness 0.4 writes one: results and, for each task, samples.

A task is a relation, and a document a question (https://github.com/EleutherAI/lm-evaluation-harness).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.runs.answered import AnsweredRun, public_id, read_answered

if TYPE_CHECKING:
    from morfi.store import Store


def write_lm_eval(store: Store, run_id: str, folder: Path) -> str:
    """Writes MODEL/results_TIME.json and MODEL/samples_TASK_TIME.jsonl; returns the run's id in full.

    TIME is that of the run's start: the same run gives the same files. Only greedy answers to first prompts
    are in them, as in the accuracies. What only the harness knows, such as its own version, is left out.
    """
    run = read_answered(store, run_id)
    tasks = _tasks(run)
    samples = {
        tasks[relation]: [_sample(run, place, row) for place, row in enumerate(_rows_of(run, relation))]
        for relation in tasks
    }
    n_whole: dict[str, int] = {}
    for baseline in store.baselines(run.record.run_id):
        n_whole[baseline.relation] = n_whole.get(baseline.relation, 0) + baseline.n
    name = re.sub(r"[\"<>:/|\\?*\[\]]+", "__", run.model_id)
    results = _results(run, tasks, n_whole) | {
        "task_hashes": {task: _sha256("".join(map(_hashes, rows))) for task, rows in samples.items()},
        "model_name": run.model_id,
        "model_name_sanitized": name,
    }
    time = f"{run.record.created_at:%Y-%m-%dT%H-%M-%S.%f}"
    (folder / name).mkdir()
    text = json.dumps(results, indent=2, ensure_ascii=False)
    (folder / name / f"results_{time}.json").write_text(text, encoding="utf-8")
    for task, rows in samples.items():
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / name / f"samples_{task}_{time}.jsonl").write_text(lines, encoding="ascii")
    return run.record.run_id


def _tasks(run: AnsweredRun) -> dict[str, str]:
    """The name of each relation's task: letters, digits and underscores, no two alike."""
    tasks: dict[str, str] = {}
    for relation in run.accuracies:
        name = re.sub(r"\W", "_", f"{run.data_name}_{relation}")
        while name in tasks.values():
            name += "_"
        tasks[relation] = name
    return tasks


def _results(run: AnsweredRun, tasks: dict[str, str], n_whole: dict[str, int]) -> dict[str, Any]:
    record, asked, metric = run.record, run.record.asked, run.metric
    found = {tasks[relation]: one for relation, one in run.accuracies.items()}
    model = "local-chat-completions" if record.config.get("chat") else "local-completions"
    return {
        "results": {
            task: {
                "name": task,
                "alias": task,
                "sample_len": one.n,
                f"{metric},none": one.accuracy,
                f"{metric}_stderr,none": _standard_error(one.accuracy, one.n),
            }
            for task, one in found.items()
        },
        "group_subtasks": {task: [] for task in found},
        "configs": {task: _config(run, relation, task) for relation, task in tasks.items()},
        "versions": dict.fromkeys(found, record.data_sha256[:12]),
        "n-shot": dict.fromkeys(found, asked.shots or 0),
        "higher_is_better": {task: {metric: True} for task in found},
        "n-samples": {
            tasks[relation]: {"original": n_whole.get(relation, one.n), "effective": one.n}
            for relation, one in run.accuracies.items()
        },
        "config": {
            "model": model if asked.endpoint else "vllm",
            "model_args": _model_args(run),
            "model_dtype": run.attempt.engine.get("dtype"),
            "model_sha": record.ckpt_sha256,
            "device": run.attempt.device,
            "limit": asked.limit,
            "gen_kwargs": None,
            "random_seed": record.seed,
            "fewshot_seed": record.seed,
        },
        "git_hash": run.attempt.git_commit,
        "date": record.created_at.timestamp(),
        "transformers_version": run.attempt.versions.get("transformers"),
        "morfi_version": run.attempt.morfi_version,
        "model_source": model if asked.endpoint else "vllm",
        "system_instruction": record.config.get("system"),
        "fewshot_as_multiturn": bool(record.config.get("chat")),
        "total_evaluation_time_seconds": str(run.summary.wall_s),
    }


def _model_args(run: AnsweredRun) -> dict[str, str]:
    """The model as the harness is given one: a base model and its adapter, or a model."""
    if run.record.adapter_sha256 is not None and run.record.base is not None:
        return {"pretrained": public_id(run.record.base), "peft": run.model_id}
    return {"pretrained": run.model_id}


def _config(run: AnsweredRun, relation: str, task: str) -> dict[str, Any]:
    aggregated = {"metric": run.metric, "aggregation": "mean", "higher_is_better": True}
    return {
        "task": task,
        "dataset_path": run.data_name,
        "dataset_name": relation,
        "test_split": run.split,
        "doc_to_text": run.record.prompt,
        "doc_to_target": "answers",
        "num_fewshot": run.record.asked.shots or 0,
        "metric_list": [{**aggregated, "match": run.record.asked.match}],
        "output_type": "generate_until",
        "generation_kwargs": _generation(run),
        "repeats": 1,
        "metadata": {"data_sha256": run.record.data_sha256, "run_id": run.record.run_id},
    }


def _generation(run: AnsweredRun) -> dict[str, Any]:
    length = run.record.asked.max_tokens
    limit = {} if length is None else {"max_gen_toks": length}
    return {"until": ["\n"], "do_sample": False, "temperature": 0.0, **limit}


def _rows_of(run: AnsweredRun, relation: str) -> list[dict[str, Any]]:
    return [row for row in run.rows if row["relation"] == relation]


def _sample(run: AnsweredRun, place: int, row: dict[str, Any]) -> dict[str, Any]:
    doc = {key: row[key] for key in ("question_id", "relation", "subject", "question", "answers")}
    target = str(row["answers"])
    return {
        "doc_id": place,
        "doc": doc,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": row["prompt"], "arg_1": _generation(run)}},
        "resps": [[row["text"]]],
        "filtered_resps": [row["answer"]],
        "filter": "none",
        "metrics": [run.metric],
        "doc_hash": _sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _sha256(row["prompt"]),
        "target_hash": _sha256(target),
        run.metric: float(row["correct"]),
    }


def _hashes(sample: dict[str, Any]) -> str:
    return "".join(sample[f"{part}_hash"] for part in ("doc", "prompt", "target"))


def _standard_error(share: float, n: int) -> float | str:
    """The standard error of a mean of n zeros and ones, as the harness estimates it."""
    return math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else "N/A"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
