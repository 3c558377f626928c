"""`morfi serve` with limits of a test's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from morfi.serve.http.gate import Limits
from morfi.serve.http.keys import read_keys
from morfi.serve.http.launch import ServeConfig, prepare_server
from morfi.serve.http.server import Address, run_server
from morfi.store import Store
from morfi.terminal import TerminalProgress


def main() -> None:
    """Serves what the job, a JSON object, says."""
    job = json.loads(sys.argv[1])
    engine = {"kv_cache_memory_bytes": 1 << 26, **job.get("engine", {})}
    given: dict[str, Any] = {name: tuple(job[name]) for name in ("latents", "sae") if name in job}
    config = ServeConfig(job.get("ckpt", "M_100"), **given, vectors=job.get("vectors"), engine=engine)
    with TerminalProgress() as progress:
        run_server(
            prepare_server(config, Store(Path(job["db"])), progress),
            address=Address("127.0.0.1", job["port"], read_keys(None)),
            on_ready=lambda url: print(f"serving on {url}", flush=True),  # noqa: T201
            limits=Limits(**job.get("limits", {})),
        )


if __name__ == "__main__":
    main()
