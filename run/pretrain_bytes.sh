#!/usr/bin/env bash
# Trains the byte model that comes with the package: a GRU that reads text, source code and Markdown.
#     bash run/make_corpus.sh           # once: the corpus, without a hub
#     bash run/pretrain_bytes.sh        # on all GPUs, or the CPU: half an hour of one core
#     WRITE=auto_compressor/assets/bytes bash run/pretrain_bytes.sh    # and what comes with the package, in 8 bits
# Further arguments go to train.py. A run that was killed goes on from its last whole checkpoint, at most ten minutes
# old, when it is started again; on a CPU it ends as if it had never been killed, bit for bit.
set -euo pipefail
source "$(dirname "$0")/env.sh"

CORPUS=${CORPUS:-build/corpus}  # what run/make_corpus.sh wrote; its part under permissive licences is read
HIDDEN_SIZE=${HIDDEN_SIZE:-256} # width of the layers
LEVELS=${LEVELS:-1}             # recurrent blocks, of two layers each: 1 is one, 2 are 3, 3 are 5
SEQUENCE_LENGTH=${SEQUENCE_LENGTH:-128}    # bytes of a window, which goes on from the state of the one before
BATCH=${BATCH:-64}              # windows per step, over all GPUs
STEPS=${STEPS:-2300}            # steps
LR=${LR:-4e-3}                  # learning rate of Muon, and of AdamW for embeddings and head
MINUTES=${MINUTES:-10}          # between checkpoints
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}    # GPUs per node; 0 trains on the CPU
NUM_NODES=${NUM_NODES:-1}
NODE=${NODE:-localhost}         # host of the first node
OUT=${OUT:-}                    # output folder; its default names the settings
WRITE=${WRITE:-}                # folder to write the model in, rounded to 8 bits a weight

################################

share_batch BATCH "$BATCH"
[ -e "$CORPUS/train.jsonl" ] || fail "CORPUS=$CORPUS has no train.jsonl: bash run/make_corpus.sh"
[ -e "$CORPUS/bytes_train.jsonl" ] || PYTHONPATH=. python run/make_bytes_corpus.py "$CORPUS"
SAVE=$STEPS

start_run "gru_byte_${HIDDEN_SIZE}x${LEVELS}_L${SEQUENCE_LENGTH}_B${BATCH}_lr${LR}_${STEPS}" \
    --model_type gru_byte --hidden_size "$HIDDEN_SIZE" --num_levels "$LEVELS" \
    --train_file "$CORPUS/bytes_train.jsonl" --validation_file "heldout=$CORPUS/bytes_heldout.jsonl" \
    --max_eval_samples 2048 --sequence_length "$SEQUENCE_LENGTH" \
    --add_special_tokens true --no_window_end_target --carry_state \
    --max_steps "$STEPS" --per_device_train_batch_size $((BATCH / devices)) --per_device_eval_batch_size 32 \
    --save_minutes "$MINUTES" --optim_family muon --muon_scale 0.4 --learning_rate "$LR" \
    --weight_decay 0.01 --adam_beta2 0.98 \
    --lr_scheduler_type cosine --warmup_steps $((STEPS / 25)) --max_grad_norm 1 --logging_steps 10 \
    "$@"
[ -z "$WRITE" ] || PYTHONPATH=. python run/round_bytes.py "$OUT" "$WRITE"
