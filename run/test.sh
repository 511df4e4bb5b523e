#!/usr/bin/env bash
# Runs the tests, or those that the arguments choose: bash run/test.sh tests/autocompressor/test_generation.py -k beams
set -euo pipefail
source "$(dirname "$0")/env.sh"

# Small models run several times faster on one thread; no test needs a hub.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
# Two processes; the tests of a file stay in one, with what they share.
python -m pytest -q -n 2 --dist loadfile "$@"
