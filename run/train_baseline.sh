#!/usr/bin/env bash
# Trains the GRU that has as many parameters as the adaptive model of these sizes; variables and arguments are those of
# run/train_adaptive.sh:
#     bash run/train_baseline.sh
#     DATA=bundled MAX_STEPS=1600 bash run/train_baseline.sh --no_window_end_target --carry_state
MODEL_TYPE=gru_byte exec bash "$(dirname "$0")/train_adaptive.sh" "$@"
