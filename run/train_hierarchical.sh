#!/usr/bin/env bash
# Trains a hierarchical byte autoencoder. Every variable can be set in front, further arguments go to train.py:
#     bash run/train_hierarchical.sh                                # one level, the bundled text, minutes on a CPU
#     LEVELS=2 STEPS=6000 bash run/train_hierarchical.sh            # two levels
#     QUANTIZER=fsq bash run/train_hierarchical.sh --fsq_levels 8 5 5 5
#     STEPS= EPOCHS=3 REPORT=mlflow bash run/train_hierarchical.sh --train_file book.txt
# A run that was killed goes on from its last whole checkpoint when it is started again.
set -euo pipefail
source "$(dirname "$0")/env.sh"

LEVELS=${LEVELS:-1}             # levels of codes
HIDDEN=${HIDDEN:-128}           # width of the layers
QUANTIZER=${QUANTIZER:-ema_vq}  # ema_vq, residual_vq or fsq; one for all levels, or one for each
CODES=${CODES:-1024}            # codes of a codebook; one number for all levels, or one for each
RULE=${RULE:-entropy_rise}      # where segments start: entropy_rise, entropy_threshold, cumulative_entropy, target_ratio
BLOCK=${BLOCK:-512}             # bytes per sequence
BATCH=${BATCH:-4}               # sequences per step, over all GPUs
LR=${LR:-2e-3}                  # learning rate
WU=${WU:-20}                    # warm-up steps
STEPS=${STEPS-300}              # steps; empty: EPOCHS decides
EPOCHS=${EPOCHS:-1}
SAVE=${SAVE:-100}               # steps between checkpoints
EVAL=${EVAL:-100}               # steps between evaluations
REPORT=${REPORT:-none}          # mlflow, tensorboard or wandb
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}    # GPUs per node; 0 trains on the CPU
NUM_NODES=${NUM_NODES:-1}
NODE=${NODE:-localhost}         # host of the first node
OUT=${OUT:-}                    # output folder; its default names the settings

################################

share_batch BATCH "$BATCH"
name="hier_l${LEVELS}_${QUANTIZER// /-}_c${CODES// /-}_d${HIDDEN}_lr${LR}_bsz${BATCH}x${BLOCK}"

arguments=(
    --model_type hierarchical_autoencoder
    --num_levels "$LEVELS"
    --hidden_size $HIDDEN
    --quantizer $QUANTIZER
    --codebook_size $CODES
    --border_rule $RULE
    --block_size "$BLOCK"
    --per_device_train_batch_size $((BATCH / devices))
    --learning_rate "$LR"
    --warmup_steps "$WU"
    --num_train_epochs "$EPOCHS"
    --max_steps "${STEPS:--1}"
    --logging_steps 10
)

start_run "$name" "${arguments[@]}" "$@"
