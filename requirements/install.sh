#!/usr/bin/env bash
# Installs morfi into .venv from a full pinned lock: the CUDA lock where an NVIDIA driver answers, else the
# CPU lock. Does nothing when .venv already holds what the lock says. MORFI_LOCK=cpu|cuda overrides the choice.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'install: %s\n' "$*" >&2; exit 1; }

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null ||
    fail "$python is not Python 3.11 to 3.13; set PYTHON=/path/to/python3.11"
[ "$(uname -sm)" = "Linux x86_64" ] || fail "the locks are for Linux on x86-64, this is $(uname -sm)"

if [ -n "${MORFI_LOCK:-}" ]; then lock=$MORFI_LOCK
elif nvidia-smi -L >/dev/null 2>&1; then lock=cuda
else lock=cpu; fi
file=requirements/$lock.lock
[ -f "$file" ] || fail "no lock $file; MORFI_LOCK is cpu or cuda"

stamp=.venv/.morfi-lock
wanted=$(cat "$file" pyproject.toml | sha256sum | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ]; then exit 0; fi

printf 'install: %s packages of %s into .venv (a few minutes the first time)\n' "$(grep -c == "$file")" "$file" >&2
if [ ! -x .venv/bin/python ]; then
    "$python" -m venv .venv || fail "python3 -m venv failed; on Debian or Ubuntu: apt-get install python3-venv"
fi
pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet install --no-deps)

# PyTorch publishes its CPU builds on an index of its own; a mirror or a local folder known to pip comes first.
torch=$(grep -E '^torch==' "$file")
if [[ $torch == *+cpu ]] && ! "${pip[@]}" "$torch" 2>/dev/null; then
    printf 'install: %s is not on the default index; trying the PyTorch CPU index\n' "$torch" >&2
    "${pip[@]}" --retries 1 --timeout 20 --index-url https://download.pytorch.org/whl/cpu "$torch" ||
        fail "cannot get $torch: neither pip's indexes nor download.pytorch.org/whl/cpu have it; download the wheel and set PIP_FIND_LINKS to its folder"
fi
"${pip[@]}" -r "$file" || fail "pip could not install $file; the lines above say which package and why"
"${pip[@]}" --no-build-isolation --editable . || fail "pip could not install morfi itself"
printf '%s' "$wanted" > "$stamp"
printf 'install: done; .venv/bin/morfi --help\n' >&2
