"""A run in the schema 0.3.0 of Every Eval Ever (https://github.com/evaleval/every_eval_ever).

Its validator takes what is written here: `every_eval_ever validate FOLDER/data`.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morfi.runs.answered import AnsweredRun, portable, public_id, read_answered
from morfi.store.records import RelationAccuracy

if TYPE_CHECKING:
    from morfi.store import Store

SCHEMA_VERSION = "0.3.0"


def write_eee(store: Store, run_id: str, folder: Path) -> str:
    """Writes the run's results and its answers below `folder`; returns the run's id in full.

    They are data/DATASET/DEVELOPER/MODEL/UUID.json and UUID_samples.jsonl, the UUID made of the run's id: the
    same run gives the same files. Only greedy answers to first prompts are in them, as in the accuracies.
    """
    run = read_answered(store, run_id)
    # A version 4 UUID, as the schema wants it, with the run's id for the random bits.
    name = str(uuid.UUID(bytes=hashlib.sha256(run.record.run_id.encode()).digest()[:16], version=4))
    developer, model = run.model_id.split("/")
    place = Path("data", portable(run.data_name), developer, model)
    (folder / place).mkdir(parents=True)
    # In ASCII: some readers take U+2028 for the end of a line.
    lines = "".join(f"{json.dumps(_instance(run, row), sort_keys=True)}\n" for row in run.rows).encode()
    samples = place / f"{name}_samples.jsonl"
    (folder / samples).write_bytes(lines)
    results = _results(run) | {
        "detailed_evaluation_results": {
            "format": "jsonl",
            "file_path": samples.as_posix(),
            "hash_algorithm": "sha256",
            "checksum": hashlib.sha256(lines).hexdigest(),
            "total_rows": len(run.rows),
        }
    }
    text = json.dumps(results, indent=1, ensure_ascii=False, sort_keys=True)
    (folder / place / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
    return run.record.run_id


def _results(run: AnsweredRun) -> dict[str, Any]:
    asked_at = str(int(run.record.created_at.timestamp()))
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": _evaluation_id(run),
        "evaluation_timestamp": asked_at,
        "retrieved_timestamp": asked_at,
        "source_metadata": {
            "source_name": "morfi",
            "source_type": "evaluation_run",
            "source_organization_name": "unknown",
            "evaluator_relationship": "other",
            "additional_details": {"run_id": run.record.run_id},
        },
        "eval_library": {
            "name": "morfi",
            "version": run.attempt.morfi_version,
            "additional_details": _texts({"git_commit": run.attempt.git_commit, **run.attempt.versions}),
        },
        "model_info": _model(run),
        "evaluation_results": [_result(run, one) for one in run.accuracies.values()],
    }


def _model(run: AnsweredRun) -> dict[str, Any]:
    record, (name, version) = run.record, run.engine
    served = bool(record.asked.endpoint)
    is_public = not run.model_id.startswith("local/") and not served
    return {
        "id": run.model_id,
        "name": run.model_id.split("/")[1],
        "developer": run.model_id.split("/")[0],
        "inference_engine": {"name": name, "version": version},
        "additional_details": {
            "deployment_type": "unknown" if served else "self_deployed",
            "model_availability": "open_weights" if is_public else "unknown",
            **_texts(
                {
                    "sha256": record.ckpt_sha256,
                    "base": None if record.base is None else public_id(record.base),
                    "base_sha256": record.base_sha256,
                    "adapter_sha256": record.adapter_sha256,
                    "dtype": run.attempt.engine.get("dtype"),
                    "device": run.attempt.device,
                }
            ),
        },
    }


def _result(run: AnsweredRun, found: RelationAccuracy) -> dict[str, Any]:
    asked = run.record.asked
    return {
        "evaluation_result_id": _result_id(run, str(found.relation)),
        "evaluation_name": _name(run, str(found.relation)),
        "source_data": {
            "dataset_name": run.data_name,
            "source_type": "other",
            "additional_details": _texts(
                {"sha256": run.record.data_sha256, "split": run.split, "relation": found.relation}
            ),
        },
        "metric_config": {
            "evaluation_description": "Closed-book questions, greedy answers to the first prompt",
            "metric_id": run.metric,
            "metric_name": "Accuracy",
            "metric_kind": "accuracy",
            "metric_unit": "proportion",
            "metric_parameters": {"match": asked.match},
            "lower_is_better": False,
            "score_type": "continuous",
            "min_score": 0,
            "max_score": 1,
        },
        "score_details": {
            "score": found.accuracy,
            "details": {"n_correct": str(found.n_correct)},
            "uncertainty": {
                "confidence_interval": {
                    "lower": found.ci_low,
                    "upper": found.ci_high,
                    "confidence_level": 0.95,
                    "method": "wilson",
                },
                "num_samples": found.n,
            },
        },
        "generation_config": {
            "generation_args": {
                "temperature": 0,
                "prompt_template": run.record.prompt,
                **({} if asked.max_tokens is None else {"max_tokens": asked.max_tokens}),
            },
            "additional_details": _texts(
                {"shots": asked.shots, "seed": run.record.seed, "bos": run.record.bos_shown, "stop": "\\n"}
            ),
        },
    }


def _instance(run: AnsweredRun, row: Mapping[str, Any]) -> dict[str, Any]:
    raw, reference = row["question"], list(row["answers"])
    asked_for = json.dumps({"raw": raw, "reference": reference}, sort_keys=True)
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluation_id": _evaluation_id(run),
        "model_id": run.model_id,
        "evaluation_name": _name(run, row["relation"]),
        "evaluation_result_id": _result_id(run, row["relation"]),
        "sample_id": row["question_id"],
        "sample_hash": hashlib.sha256(asked_for.encode()).hexdigest(),
        "interaction_type": "single_turn",
        "input": {"raw": raw, "formatted": row["prompt"], "reference": reference},
        "output": {"raw": [row["text"]]},
        "answer_attribution": [
            {
                "turn_idx": 0,
                "source": "output.raw",
                "extracted_value": row["answer"],
                "extraction_method": "first line",
                "is_terminal": True,
            }
        ],
        "evaluation": {"score": float(row["correct"]), "is_correct": row["correct"]},
        "token_usage": {
            "input_tokens": row["prompt_tokens"],
            "output_tokens": row["output_tokens"],
            "total_tokens": row["prompt_tokens"] + row["output_tokens"],
            "input_tokens_cache_read": row["cached_tokens"],
        },
        "metadata": _texts({"subject": row["subject"], "finish_reason": row["finish_reason"]}),
    }


def _evaluation_id(run: AnsweredRun) -> str:
    """The schema's EVALUATION/MODEL/TIME, where the run's id is the evaluation."""
    return f"{run.record.run_id}/{run.model_id}/{int(run.record.created_at.timestamp())}"


def _name(run: AnsweredRun, relation: str) -> str:
    return f"{run.data_name}/{relation}"


def _result_id(run: AnsweredRun, relation: str) -> str:
    return f"{run.record.run_id}/{relation}/{run.metric}"


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    """The schema's further details, which are text; without those that are not known."""
    return {key: str(value) for key, value in values.items() if value is not None}
