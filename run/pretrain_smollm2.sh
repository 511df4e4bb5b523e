#!/usr/bin/env bash
# Makes SmolLM2-135M an AutoCompressor: LoRA adapters that read 4, 8 or 16 tokens from one summary vector.
#     SMOLLM2=1 bash run/setup.sh && bash run/make_corpus.sh     # once: weights and corpus, without a hub
#     bash run/pretrain_smollm2.sh                               # on all GPUs, or the CPU
# Further arguments go to train.py. A run that was killed goes on from its last whole checkpoint, at most ten minutes
# old, when it is started again; on a CPU it ends as if it had never been killed, bit for bit.
set -euo pipefail
source "$(dirname "$0")/env.sh"

CORPUS=${CORPUS:-build/corpus}  # what run/make_corpus.sh wrote
TOKENS=${TOKENS:-3000000}       # tokens to train on
BATCH=${BATCH:-4}               # sequences per step, over all GPUs
SEGMENTS=${SEGMENTS:-256 128}   # tokens of the segments of a sequence
SUM=${SUM:-64}                  # most summary vectors of a segment
SOURCE=${SOURCE:-means}         # what they are made of: tokens, means, both
SCALE=${SCALE-learned}          # how large they are: as hidden states (empty), normalized, learned
RESIDUAL=${RESIDUAL:-true}      # whether they are differences to the embeddings of the last tokens
NESTED=${NESTED:-true}          # whether any number of them up to SUM is trained, or SUM alone
DISTIL=${DISTIL:-1}             # weight of the distillation from SmolLM2 with the full context; 0 is none
RANK=${RANK:-12}                # of the LoRA adapters; 0 trains all weights
LR=${LR:-5e-4}                  # learning rate
MINUTES=${MINUTES:-10}          # between checkpoints
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}    # GPUs per node; 0 trains on the CPU
NUM_NODES=${NUM_NODES:-1}
NODE=${NODE:-localhost}         # host of the first node
OUT=${OUT:-}                    # output folder; its default names the settings

################################

share_batch BATCH "$BATCH"
[ -e "$CORPUS/train.jsonl" ] || fail "CORPUS=$CORPUS has no train.jsonl: bash run/make_corpus.sh"
length=0
for segment in $SEGMENTS; do length=$((length + segment)); done
steps=$((TOKENS / length / BATCH))
SAVE=$steps
[ "$RANK" = 0 ] || adapters=(--lora --lora_r "$RANK" --lora_alpha $((2 * RANK)) --lora_dropout 0
    --lora_target_modules all-linear)
[ "$DISTIL" = 0 ] || teacher=(--distillation_weight "$DISTIL" --distillation_model smollm2)

start_run "smollm2_${SOURCE}_${SCALE:-plain}_residual-${RESIDUAL}_${SEGMENTS// /-}_sum${SUM}_distil${DISTIL}_r${RANK}_lr${LR}_bsz${BATCH}_tok${TOKENS}" \
    --model_name_or_path smollm2 \
    --train_file "$CORPUS/train.jsonl" --validation_file "heldout=$CORPUS/heldout.jsonl" --max_eval_samples 64 \
    ${adapters+"${adapters[@]}"} \
    --segment_lengths $SEGMENTS \
    --summary_length "$SUM" --summary_source "$SOURCE" ${SCALE:+--summary_scale "$SCALE"} \
    --summary_residual "$RESIDUAL" --nested_summaries "$NESTED" ${teacher+"${teacher[@]}"} \
    --max_steps "$steps" --per_device_train_batch_size $((BATCH / devices)) --per_device_eval_batch_size 8 \
    --save_minutes "$MINUTES" --learning_rate "$LR" --lr_scheduler_type cosine --warmup_steps $((steps / 20)) \
    --weight_decay 0.01 --adam_beta2 0.98 --logging_steps 10 --include_num_input_tokens_seen true \
    "$@"
