#!/usr/bin/env bash
# Compares what vLLM generates after summary vectors with `generate`, in the environment that SERVE=1 bash run/setup.sh
# makes (or that of the Python SERVE_PYTHON); the arguments choose tests: bash run/serve_test.sh -k http
set -euo pipefail
source "$(dirname "$0")/env.sh"
export SERVE_PYTHON=${SERVE_PYTHON:-$PWD/.venv-serve/bin/python}
[ -x "$SERVE_PYTHON" ] || fail "there is no $SERVE_PYTHON, make it first: SERVE=1 bash run/setup.sh"

export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
python -m pytest -q tests/serving "$@"
