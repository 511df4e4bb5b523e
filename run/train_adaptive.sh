#!/usr/bin/env bash
# Trains a byte language model with adaptive borders. Every variable can be set in front, further arguments go to
# train.py:
#     bash run/train_adaptive.sh                                # WikiText-103, or the bundled text without a hub
#     DATA=bundled MAX_STEPS=1600 bash run/train_adaptive.sh --target_ratios 4 4 --add_encoder_states
#     DATA=book.txt REPORT=tensorboard bash run/train_adaptive.sh --no_window_end_target --carry_state
#     bash run/train_baseline.sh                                # the GRU of as many parameters
# A run that was killed goes on from its last whole checkpoint when it is started again.
set -euo pipefail
source "$(dirname "$0")/env.sh"

MODEL_TYPE=${MODEL_TYPE:-adaptive_byte}     # gru_byte: the baseline, which has no borders
SEQUENCE_LENGTH=${SEQUENCE_LENGTH:-128}     # bytes of a window
BATCH_SIZE=${BATCH_SIZE:-8}                 # windows per step, over all GPUs
HIDDEN_SIZE=${HIDDEN_SIZE:-128}             # width of the layers
NUM_LEVELS=${NUM_LEVELS:-3}                 # levels, that of bytes among them
THRESHOLD=${THRESHOLD:-0.1}                 # squared error above which teacher-forced borders are set
BYTE_ENTROPY_THRESHOLD=${BYTE_ENTROPY_THRESHOLD:-20}            # nats from one border of bytes to the next
META_UNCERTAINTY_THRESHOLD=${META_UNCERTAINTY_THRESHOLD:-1}     # uncertainty from border to border above; one or more
ENTROPY_FLOOR=${ENTROPY_FLOOR:-0}           # nats of entropy below which bytes are penalised
ENTROPY_REG_WEIGHT=${ENTROPY_REG_WEIGHT:-0.001}     # weight of that penalty
LR=${LR:-3e-4}                  # learning rate
WEIGHT_DECAY=${WEIGHT_DECAY:-0.01}
MAX_STEPS=${MAX_STEPS:-10000}   # steps
DATA=${DATA-}                   # bundled, a file, or a dataset; empty: WikiText-103 where the hub can be reached
SAVE=${SAVE:-1000}              # steps between checkpoints
EVAL=${EVAL:-1000}              # steps between evaluations
REPORT=${REPORT:-none}          # mlflow, tensorboard or wandb
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}    # GPUs per node; 0 trains on the CPU
NUM_NODES=${NUM_NODES:-1}
NODE=${NODE:-localhost}         # host of the first node
OUT=${OUT:-}                    # output folder; its default names the settings

################################

share_batch BATCH_SIZE "$BATCH_SIZE"
find_data
name="${MODEL_TYPE}_L${SEQUENCE_LENGTH}_B$((BATCH_SIZE * SEQUENCE_LENGTH / 1000))k"

arguments=(
    --model_type "$MODEL_TYPE"
    --sequence_length "$SEQUENCE_LENGTH"
    --hidden_size "$HIDDEN_SIZE"
    --num_levels "$NUM_LEVELS"
    --threshold "$THRESHOLD"
    --byte_entropy_threshold "$BYTE_ENTROPY_THRESHOLD"
    --meta_uncertainty_threshold $META_UNCERTAINTY_THRESHOLD
    --entropy_floor "$ENTROPY_FLOOR"
    --entropy_reg_weight "$ENTROPY_REG_WEIGHT"
    --per_device_train_batch_size $((BATCH_SIZE / devices))
    --learning_rate "$LR"
    --weight_decay "$WEIGHT_DECAY"
    --max_steps "$MAX_STEPS"
    --logging_steps 50
    "${data[@]}"
)

start_run "$name" "${arguments[@]}" "$@"
