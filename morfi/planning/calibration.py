"""What a machine was measured to do, kept in the cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from morfi.cache import Cache
from morfi.files import whole_file
from morfi.planning.rates import Rates
from morfi.runs.provenance import versions

_FORMAT = 1  # of the file


@dataclass(frozen=True, slots=True)
class Calibration:
    """The rates of a device on `model`, when they were measured, and with which packages."""

    device: str
    model: str
    at: str  # ISO 8601, UTC
    versions: Mapping[str, str]
    rates: Rates

    @property
    def changed(self) -> tuple[str, ...]:
        """A sentence where the packages that compute are others by now."""
        now = versions()
        other = [name for name in ("torch", "transformers") if self.versions.get(name) != now.get(name)]
        other += [name for name in now if name.startswith("vllm") and self.versions.get(name) != now[name]]
        if not other:
            return ()
        return (f"{' and '.join(other)} changed since: `morfi plan --calibrate` measures again",)


def calibrated(device: str) -> Calibration | None:
    """The newest calibration of a device called so; None where there is none of this form."""
    found = _read(_file()).get(device)
    if found is None:
        return None
    try:
        return Calibration(**{**found, "rates": Rates(**found["rates"])})
    except (TypeError, KeyError):  # of another morfi
        return None


def keep(calibration: Calibration) -> Path:
    """Keeps a calibration in place of an earlier one of its device; returns the file."""
    path = _file()
    path.parent.mkdir(parents=True, exist_ok=True)
    devices = {**_read(path), calibration.device: asdict(calibration)}
    with whole_file(path) as file:
        file.write(json.dumps({"format": _FORMAT, "devices": devices}, indent=1).encode())
    return path


def _file() -> Path:
    return Cache().root / "calibration.json"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_ours = isinstance(found, dict) and found.get("format") == _FORMAT
    devices = found.get("devices") if is_ours else None
    return devices if isinstance(devices, dict) else {}
