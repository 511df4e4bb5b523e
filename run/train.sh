#!/usr/bin/env bash
# Trains an AutoCompressor. Every variable can be set in front, further arguments go to train.py:
#     bash run/train.sh                                        # OPT-125M on all GPUs, the published data
#     BASE=opt-2.7b NUM_GPUS=8 bash run/train.sh --fast_attention
#     BASE=smollm2 NUM_GPUS=0 bash run/train.sh                # no hub, no GPU, the bundled text
#     CML=8 bash run/train.sh --compression_lambda 0.1         # the model decides: up to 8 summary vectors per segment
#     MODE=RMT bash run/train.sh                               # baseline: the last summary vectors only
#     MODE=FA bash run/train.sh                                # baseline: full attention, no summary vectors
# A run that was killed goes on from its last whole checkpoint when it is started again.
set -euo pipefail
source "$(dirname "$0")/env.sh"

BASE=${BASE:-opt-125m}          # opt-*: of facebook; tiny, smollm2: without a hub; else a hub name or a folder
# The bundled text is short: bases without a hub learn faster on it, and warm up in a few steps.
case $BASE in
    tiny) LR=${LR:-2e-3} WU=${WU:-10} ;;
    smollm2) WU=${WU:-5} ;;
esac
BATCH=${BATCH:-16}              # sequences per step, over all GPUs
SEQ=${SEQ:-1}                   # sequences per GPU at a time
LR=${LR:-2e-5}                  # learning rate
WU=${WU:-1000}                  # warm-up steps
SAVE=${SAVE:-1000}              # steps between checkpoints
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}    # GPUs per node; 0 trains on the CPU
NUM_NODES=${NUM_NODES:-1}
NODE=${NODE:-localhost}         # host of the first node
SEG=${SEG:-2}                   # segments per substep
SUB=${SUB:-2}                   # substeps per sequence
SUM=${SUM:-50}                  # summary vectors per segment
CML=${CML:-0}                   # most summary vectors, where the model decides their number (0: SUM of them)
ACC=${ACC:-true}                # keep the summary vectors of all earlier segments
RAND=${RAND:-true}              # draw the segment lengths
CHECK=${CHECK:-false}           # segment gradient checkpointing
MODE=${MODE:-CP}                # CP: compression, RMT: ACC=false, FA: full attention
OUT=${OUT:-}                    # output folder; its default names the settings
TRAIN_SETS=${TRAIN_SETS-default}    # tokenised datasets; empty: the bundled text, or what the arguments name
EVAL_SETS=${EVAL_SETS-default}

################################

[[ $CML =~ ^[0-9]+$ ]] || fail "CML must be 0 or a number of summary vectors, got $CML."
case $MODE in
    CP) ;;
    RMT) ACC=false ;;
    FA) SUM=0 CML=0 ;;
    *) fail "MODE must be CP, RMT or FA, got $MODE." ;;
esac

case $BASE in
    tiny) model=(--config_name tiny) ;;
    opt-*) model=(--model_name_or_path "facebook/$BASE") ;;
    *) model=(--model_name_or_path "$BASE") ;;
esac
case $BASE in opt-* | */opt-*) published=opt ;; *) published= ;; esac
domains() { for domain in "$@"; do printf 'awettig/Pile-%s-0.5B-6K-opt ' "$domain"; done; }
if [ "$TRAIN_SETS" = default ]; then
    TRAIN_SETS=${published:+$(domains Books3 Github FreeLaw Wikipedia)}
fi
if [ "$EVAL_SETS" = default ]; then
    EVAL_SETS=${published:+$(domains Books3 Github FreeLaw Wikipedia Gutenberg HackerNews ArXiv YoutubeSubtitles)}
fi

devices=$((NUM_GPUS > 0 ? NUM_GPUS * NUM_NODES : 1))
[ $((BATCH % (devices * SEQ))) = 0 ] || fail "BATCH=$BATCH must be a multiple of GPUs x SEQ = $devices x $SEQ."

[ "$CML" = 0 ] && length="sum$SUM" || length="cml$CML"
name="ac_$(basename "$BASE")_sub${SUB}_seg${SEG}_${length}_lr${LR}_bsz${BATCH}"
[ "$RAND" = true ] && name+=_rand
[ "$ACC" = true ] && name+=_accu
[ "$CHECK" = true ] && name+=_check
[ "$MODE" = FA ] && name+=_fa

arguments=(
    "${model[@]}"
    --num_train_epochs 1
    --per_device_train_batch_size "$SEQ"
    --per_device_eval_batch_size "$SEQ"
    --gradient_accumulation_steps $((BATCH / devices / SEQ))
    --learning_rate "$LR"
    --warmup_steps "$WU"
    --logging_steps 10
    --max_eval_samples 2000
    --summary_length "$SUM"
    --compression_max_len "$CML"
    --accumulate_summary "$ACC"
    --training_substeps "$SUB"
    --segments_per_substep "$SEG"
    --randomize_substeps "$RAND"
    --segment_gradient_checkpointing "$CHECK"
)
[ "$MODE" = FA ] && arguments+=(--full_attention)
[ -n "$TRAIN_SETS" ] && arguments+=(--preprocessed_train_datasets $TRAIN_SETS)
[ -n "$EVAL_SETS" ] && arguments+=(--preprocessed_validation_datasets $EVAL_SETS)

start_run "$name" "${arguments[@]}" "$@"
