"""A machine is measured by the commands' own code, and the figures are kept for its device and packages."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from morfi.planning import calibration, measure
from morfi.planning.calibration import Calibration, calibrated, keep
from morfi.planning.rates import GPUS, gpu_rates
from morfi.questions import load_questions, with_splits
from morfi.runs.provenance import versions
from morfi.training.config import train_config

MADE = Calibration("a device", "tiny", "2026-11-26T12:00:00+00:00", versions(), gpu_rates(GPUS["l40s"]))


@pytest.mark.long
@pytest.mark.usefixtures("isolated_cache")
def test_every_rate_is_measured_and_finite(
    tiny_model: Path, data_file: Path, serving: Any, log: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(measure, "_SAE_STEPS", 4)
    # No weight of the tiny model has a rank above 16.
    monkeypatch.setattr(measure, "train_config", lambda given: train_config({**given, "rank": 4}))
    found = measure.calibrate(
        str(tiny_model), with_splits(load_questions(str(data_file))), "P17", serving, log
    )
    rates = asdict(found.rates)
    assert all(math.isfinite(value) and value >= 0 for value in rates.values()), rates
    none = {name for name, value in rates.items() if value == 0}
    assert none <= {"train_part_s", "dev_pass_s", "sae_step_s", "training_s", "steered_s", "row_s"}
    assert len(serving.starts) == 2
    assert len(serving.loaded) == 1


def test_what_is_kept_is_read_again_for_its_device_alone(isolated_cache: Path) -> None:
    assert calibrated("a device") is None
    keep(MADE)
    path = keep(replace(MADE, device="another", model="other"))
    assert calibrated("a device") == MADE
    assert calibrated("another") == replace(MADE, device="another", model="other")
    assert calibrated("a third") is None
    assert MADE.changed == ()
    assert "torch changed since" in replace(MADE, versions={**MADE.versions, "torch": "1"}).changed[0]
    content = json.loads(path.read_text())
    del content["devices"]["a device"]["rates"]["answer_s"]
    path.write_text(json.dumps(content))
    assert calibrated("a device") is None
    path.write_text(json.dumps({**content, "format": calibration._FORMAT + 1}))
    assert calibrated("another") is None
    path.write_text("{")
    assert calibrated("another") is None
