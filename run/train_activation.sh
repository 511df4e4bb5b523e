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

fail() { echo "train_activation.sh: error: $*" >&2; exit 1; }

devices=$((NUM_GPUS > 0 ? NUM_GPUS * NUM_NODES : 1))
[ $((BATCH % devices)) = 0 ] || fail "BATCH=$BATCH must be a multiple of the GPUs, $devices."
case $DATA in
    "") data=() ;;
    *.txt | *.json | *.jsonl | *.csv | *.parquet) data=(--train_file "$DATA") ;;
    *) data=(--dataset_name "$DATA") ;;
esac
name="cache_$(basename "$BASE")_x${RATIO}_L${LENGTH}${SEGMENT:+_segments$SEGMENT}"
OUT=${OUT:-checkpoints/$name}
mkdir -p "$OUT"

arguments=(
    --model_type activation_compressor
    --model_name_or_path "$BASE"
    --output_dir "$OUT"
    --run_name "$name"
    --do_train
    --do_eval
    --compression_ratio "$RATIO"
    --max_length "$LENGTH"
    --continuation_length "$CONTINUATION"
    --freeze_base "$FREEZE"
    --per_device_train_batch_size $((BATCH / devices))
    --per_device_eval_batch_size 2
    --learning_rate "$LR"
    --max_steps "$STEPS"
    --save_steps "$SAVE"
    --save_total_limit 2
    --eval_strategy steps
    --eval_steps "$EVAL"
    --logging_steps 5
    --max_eval_samples 8
    --resume_from_checkpoint true
    --report_to "$REPORT"
    ${SEGMENT:+--segment_length "$SEGMENT"}
    "${data[@]}"
)

echo "Run $name -> $OUT"
run_train_py "${arguments[@]}" "$@" 2>&1 | tee -a "$OUT/log.txt"
