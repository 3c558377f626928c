#!/usr/bin/env bash
# Resolves pyproject.toml into requirements/cpu.lock and requirements/cuda.lock; needs uv. Arguments go to uv,
# for example --find-links for a folder that holds the CPU build of torch.
set -euo pipefail
cd "$(dirname "$0")/.."
compile=(uv pip compile pyproject.toml --quiet --no-header --no-annotate --upgrade
    --python-version 3.11 --python-platform x86_64-manylinux_2_28
    --extra embedded --extra ray --extra sae --extra test)
"${compile[@]}" --extra cpu --index-strategy unsafe-best-match -c <(echo "torch==2.13.0+cpu") "$@" -o requirements/cpu.lock
# An older cuda-python resolves too, but has no wheels for Python 3.13.
"${compile[@]}" --extra cuda -c <(echo "cuda-python>=13") -o requirements/cuda.lock
