#!/usr/bin/env bash
# Trains LoRA adapters that turn a Llama into an AutoCompressor (the published setting for Llama-2-7b):
#     NUM_GPUS=8 bash run/train_llama.sh --fast_attention
#     BASE=smollm2 NUM_GPUS=0 BATCH=4 SEQ=1 WU=10 TRAIN_SETS= bash run/train_llama.sh --block_size 1024 --max_steps 100
# The variables are those of run/train.sh.
set -euo pipefail

export BASE=${BASE:-meta-llama/Llama-2-7b-hf} BATCH=${BATCH:-32} SEQ=${SEQ:-2} LR=${LR:-8e-4} WU=${WU:-5000} SAVE=${SAVE:-5000}
export TRAIN_SETS=${TRAIN_SETS-awettig/RedPajama-combined-15B-6K-llama}

exec bash "$(dirname "$0")/train.sh" \
    --lora --lora_r 16 --lora_alpha 16 --lora_dropout 0.05 \
    --lora_target_modules q_proj k_proj v_proj o_proj --lora_modules_to_save embed_summary \
    "$@"
