"""The plan of an experiment, for the terminal and --json."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from morfi.planning.calibration import Calibration
from morfi.planning.fit import most_disk
from morfi.planning.plan import Plan, Planned
from morfi.report.tables import aligned
from morfi.words import counted

_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def plan_object(plan: Plan) -> dict[str, Any]:
    """The stages in order with their work and what it takes, totals, what is assumed, and what cannot be."""
    return {
        "device": plan.machine.name,
        "stages": [_stage_object(one) for one in plan.stages],
        "total": {
            "seconds": plan.total_s,
            "gpu_bytes": max((one.cost.gpu for one in plan.left), default=0),
            "host_bytes": max((one.cost.host for one in plan.left), default=0),
            "disk_bytes": sum(one.cost.disk for one in plan.left),
            "peak_disk_bytes": most_disk([one.cost for one in plan.left]),
        },
        "assumptions": list(plan.assumptions),
        "faults": list(plan.faults),
    }


def plan_text(plan: Plan) -> str:
    """A line for each stage, their totals, and below them what the numbers rest on."""
    rows = [_row(one) for one in plan.stages]
    total = plan_object(plan)["total"]
    last = (
        "together",
        "",
        "",
        duration(total["seconds"]),
        size(total["gpu_bytes"]),
        size(total["host_bytes"]),
        size(total["disk_bytes"]),
    )
    head = ("stage", "state", "work", "time", "GPU", "memory", "disk")
    table = [head, *rows, last]
    if not plan.machine.is_gpu:
        table = [(*row[:4], *row[5:]) for row in table]
    lines = aligned(table, numeric=range(3, len(table[0])), rule_before_last=True)
    peak = f"at most {size(total['peak_disk_bytes'])} on the disk at once" if plan.left else "all is done"
    notes = [f"- {one}" for one in plan.assumptions]
    return "\n".join([f"on {plan.machine.name}", *lines, peak, "", *notes])


def calibration_text(found: Calibration) -> str:
    """What a machine was measured to do."""
    rates = found.rates
    rows = [
        ("prompts", f"{rates.prompt_flops / 1e9:,.0f} GFLOP/s"),
        ("answers", f"{rates.answer_flops / 1e9:,.0f} GFLOP/s"),
        ("training", f"{rates.train_flops / 1e9:,.0f} GFLOP/s"),
        ("dev answers", f"{rates.dev_flops / 1e9:,.0f} GFLOP/s"),
        ("SAE training", f"{rates.sae_flops / 1e9:,.0f} GFLOP/s"),
        ("SAE encoding", f"{rates.encode_flops / 1e9:,.0f} GFLOP/s"),
        ("engine start", f"{rates.start_s:.1f} s"),
        ("swap", f"{rates.start_bytes / rates.swap_bytes_per_s:.2f} s"),
        ("steered answer", f"{1e3 * rates.steered_s:.2f} ms beyond its operations"),
        ("captured row", f"{1e6 * rates.row_s:.0f} us"),
        ("disk", f"{rates.write_bytes_per_s / 1e6:,.0f} MB/s written"),
        ("memory", f"{rates.answer_bytes_per_s / 1e9:,.0f} GB/s"),
    ]
    return "\n".join([f"{found.device}, on {found.model}", *aligned([("what", "rate"), *rows], numeric=(1,))])


def _stage_object(one: Planned) -> dict[str, Any]:
    cost = one.cost
    return {
        "stage": one.work.stage,
        "state": one.state,
        "work": one.work.words,
        "counts": asdict(one.work),
        "seconds": 0.0 if one.is_done else cost.total_s,
        "spent_on": {} if one.is_done or cost.seconds is None else dict(cost.seconds),
        "gpu_bytes": cost.gpu,
        "host_bytes": cost.host,
        "disk_bytes": cost.disk,
        "passing_bytes": cost.passing,
    }


def _row(one: Planned) -> tuple[str, ...]:
    if one.is_done:
        return (one.work.stage, "done", one.work.words, duration(0), "", "", "")
    cost = one.cost
    return (
        one.work.stage,
        one.state or "?",
        one.work.words,
        duration(cost.total_s),
        size(cost.gpu),
        size(cost.host),
        size(cost.disk),
    )


def duration(seconds: float | None) -> str:
    """Seconds as "2:39 min" or "3:05 h"; "?" where they are not known."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02} h"


def size(n_bytes: int) -> str:
    """Bytes as "1.5 GB"; empty for none."""
    for unit, name in _UNITS:
        if n_bytes >= unit:
            return f"{n_bytes / unit:.1f} {name}"
    return counted(n_bytes, "byte") if n_bytes else ""
