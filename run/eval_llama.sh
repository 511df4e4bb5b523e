#!/usr/bin/env bash
# Evaluates an AutoCompressor on long sequences, per substep and per segment:
#     NAME=checkpoints/ac_Llama-2-7b-hf_... SETS="validation=my_tokenised_set" bash run/eval_llama.sh
#     BASE=smollm2 NAME= NUM_GPUS=0 BLOCK=1024 SEGLEN="512 512" SETS= bash run/eval_llama.sh
#     MODE=FA ...                       # the base model, full attention over the same tokens
set -euo pipefail
source "$(dirname "$0")/env.sh"

BASE=${BASE:-meta-llama/Llama-2-7b-hf}
NAME=${NAME-}                   # folder of trained LoRA adapters; empty: BASE as it is
BLOCK=${BLOCK:-8192}            # tokens per sequence
SEGLEN=${SEGLEN:-2048 2048}     # tokens per segment of a substep; the last sum x SUB tokens are used
SUB=${SUB:-1}                   # substeps per sequence
SUM=${SUM:-50}                  # summary vectors per segment
CML=${CML-}                     # most summary vectors, where adapters decide their number; empty: as in BASE
ACC=${ACC:-true}                # keep the summary vectors of all earlier segments
SEQ=${SEQ:-2}                   # sequences per GPU at a time
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}    # GPUs per node; 0 runs on the CPU
NUM_NODES=${NUM_NODES:-1}
NODE=${NODE:-localhost}
MODE=${MODE:-CP}                # CP: compression, FA: full attention
MAXEVAL=${MAXEVAL:-500}         # sequences of each set
SETS=${SETS-}                   # tokenised validation sets; empty: the bundled text, or what the arguments name
OUT=${OUT:-${NAME:-checkpoints/$(basename "$BASE")}/eval_${BLOCK}_$MODE}

################################

arguments=(
    --model_name_or_path "$BASE"
    --output_dir "$OUT"
    --do_eval
    --block_size "$BLOCK"
    --segment_lengths $SEGLEN
    --segments_per_substep "$(wc -w <<< "$SEGLEN")"
    --training_substeps "$SUB"
    --summary_length "$SUM"
    --accumulate_summary "$ACC"
    --per_device_eval_batch_size "$SEQ"
    --max_eval_samples "$MAXEVAL"
)
[ -n "$NAME" ] && arguments+=(--lora_path "$NAME")
[ -n "$CML" ] && arguments+=(--compression_max_len "$CML")
[ -n "$SETS" ] && arguments+=(--preprocessed_validation_datasets $SETS)
[ "$MODE" = FA ] && arguments+=(--full_attention)

mkdir -p "$OUT"
run_train_py "${arguments[@]}" "$@" 2>&1 | tee -a "$OUT/log.txt"
