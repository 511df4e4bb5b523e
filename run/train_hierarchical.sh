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

devices=$((NUM_GPUS > 0 ? NUM_GPUS * NUM_NODES : 1))
if [ $((BATCH % devices)) != 0 ]; then
    echo "train_hierarchical.sh: error: BATCH=$BATCH must be a multiple of the GPUs, $devices." >&2
    exit 1
fi
name="hier_l${LEVELS}_${QUANTIZER// /-}_c${CODES// /-}_d${HIDDEN}_lr${LR}_bsz${BATCH}x${BLOCK}"
OUT=${OUT:-checkpoints/$name}
mkdir -p "$OUT"

arguments=(
    --model_type hierarchical_autoencoder
    --output_dir "$OUT"
    --run_name "$name"
    --do_train
    --do_eval
    --num_levels "$LEVELS"
    --hidden_size $HIDDEN
    --quantizer $QUANTIZER
    --codebook_size $CODES
    --border_rule $RULE
    --block_size "$BLOCK"
    --per_device_train_batch_size $((BATCH / devices))
    --per_device_eval_batch_size 16
    --learning_rate "$LR"
    --warmup_steps "$WU"
    --lr_scheduler_type cosine
    --weight_decay 0.01
    --adam_beta2 0.95
    --num_train_epochs "$EPOCHS"
    --max_steps "${STEPS:--1}"
    --save_steps "$SAVE"
    --save_total_limit 2
    --eval_strategy steps
    --eval_steps "$EVAL"
    --logging_steps 10
    --resume_from_checkpoint true
    --report_to "$REPORT"
)

echo "Run $name -> $OUT"
run_train_py "${arguments[@]}" "$@" 2>&1 | tee -a "$OUT/log.txt"
