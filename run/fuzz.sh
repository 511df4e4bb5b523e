#!/usr/bin/env bash
# Attacks the package with hostile input, for developers: minutes, no part of the tests. Prints a table of what came out,
# also case by case in build/fuzz.csv, keeps the files of failing cases in build/fuzz, and fails if there is one.
#     bash run/fuzz.sh                                     # everything, as docs/reliability.md reports it
#     bash run/fuzz.sh softprompts --count 2000 --seed 1   # one target (--help names them), other cases
set -euo pipefail
source "$(dirname "$0")/env.sh"

# Every case is a fork of one process, which must have no threads; nothing needs a hub.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
PYTHONPATH=.:tests:tests/activation_compressor:tests/lossless python -m fuzz "$@"
