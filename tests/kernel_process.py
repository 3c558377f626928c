"""Scripts of tests that run kernels in a process of their own, in Triton's interpreter or on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def printed_by(script: Path, *arguments: str, interpreted: bool = True, **environment: str) -> str:
    """What `script` prints, which Triton must be told before it is imported where it interprets.

    An interpreting one sees no GPU, on whose tensors nothing can be interpreted.
    """
    interpreting = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""} if interpreted else {}
    done = subprocess.run(
        [sys.executable, "-P", str(script), *arguments],
        env=os.environ | {"TRITON_INTERPRET": "0"} | interpreting | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
