#!/usr/bin/env bash
# Trains a compressor of key/value caches for a base model. Every variable can be set in front, further arguments go to
# train.py:
#     bash run/train_activation.sh                              # for SmolLM2-135M, on the bundled text
#     BASE=gpt2 RATIO=8 DATA=book.txt bash run/train_activation.sh --contrastive_weight 0
#     SEGMENT=256 bash run/train_activation.sh --no_use_residuals
# A run that was killed goes on from its last whole checkpoint when it is started again.
set -euo pipefail
source "$(dirname "$0")/env.sh"

BASE=${BASE:-smollm2}           # gpt2, llama, mistral, opt, qwen2 or qwen3: a hub name, a folder, or smollm2
RATIO=${RATIO:-8}               # bytes of the full cache by those of the compressed one
LENGTH=${LENGTH:-1152}          # tokens of a sequence, the context and what is predicted after it
CONTINUATION=${CONTINUATION:-128}   # tokens that are predicted after the compressed context
SEGMENT=${SEGMENT:-}            # compress after so many tokens each time; empty: once
FREEZE=${FREEZE:-true}          # false trains the base model too
BATCH=${BATCH:-2}               # sequences per step over all GPUs
LR=${LR:-2e-2}                  # learning rate
STEPS=${STEPS:-80}              # steps
DATA=${DATA-}                   # a file or a dataset; empty: the bundled text
SAVE=${SAVE:-40}                # steps between checkpoints
EVAL=${EVAL:-40}                # steps between evaluations
REPORT=${REPORT:-none}          # mlflow, tensorboard or wandb
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}    # GPUs per node; 0 trains on the CPU
NUM_NODES=${NUM_NODES:-1}
NODE=${NODE:-localhost}         # host of the first node
OUT=${OUT:-}                    # output folder; its default names the settings

################################

share_batch BATCH "$BATCH"
find_data
name="cache_$(basename "$BASE")_x${RATIO}_L${LENGTH}${SEGMENT:+_segments$SEGMENT}"

arguments=(
    --model_type activation_compressor
    --model_name_or_path "$BASE"
    --compression_ratio "$RATIO"
    --max_length "$LENGTH"
    --continuation_length "$CONTINUATION"
    --freeze_base "$FREEZE"
    --per_device_train_batch_size $((BATCH / devices))
    --learning_rate "$LR"
    --max_steps "$STEPS"
    --logging_steps 5
    --max_eval_samples 8
    ${SEGMENT:+--segment_length "$SEGMENT"}
    "${data[@]}"
)

start_run "$name" "${arguments[@]}" "$@"
