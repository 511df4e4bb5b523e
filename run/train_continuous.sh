#!/usr/bin/env bash
# Trains a continuous text autoencoder. Every variable can be set in front, further arguments go to train.py:
#     bash run/train_continuous.sh                                  # four tokens per latent, minutes on a CPU
#     CHUNK=8 LATENT=128 bash run/train_continuous.sh               # eight tokens per latent
#     STEPS=20000 BATCH=128 REPORT=tensorboard bash run/train_continuous.sh --train_file corpus.parquet --streaming
# The published model and training are
#     ARCHITECTURE=conv HIDDEN=96 LATENT=4 TIED=false KL_CLIP=0 BATCH=48 LR=1e-4 OPTIM=muon MUON_SCALE=1 \
#         bash run/train_continuous.sh
# with a batch of 48 per GPU. A run that was killed goes on from its last whole checkpoint when it is started again.
set -euo pipefail
source "$(dirname "$0")/env.sh"

ARCHITECTURE=${ARCHITECTURE:-chunk}     # chunk, or conv
EMBEDDING=${EMBEDDING:-128}     # width of the token embeddings
HIDDEN=${HIDDEN:-256}           # chunk: width of the layers per chunk; conv: channels at full length
LATENT=${LATENT:-64}            # width of a latent
CHUNK=${CHUNK:-4}               # chunk: tokens per latent
BLOCKS=${BLOCKS:-2 2}           # conv: residual blocks of each level; tokens per latent are 2 to the number of levels
TIED=${TIED:-true}              # the embeddings are the head; conv: only if EMBEDDING = HIDDEN
KL_CLIP=${KL_CLIP:-0.5}         # nats per dimension of a latent that cost nothing
KL_WEIGHT=${KL_WEIGHT:-1e-6}    # weight of the KL divergence
BLOCK=${BLOCK:-128}             # tokens per sequence
BATCH=${BATCH:-16}              # sequences per step, over all GPUs
LR=${LR:-2e-3}                  # highest learning rate
WU=${WU:-100}                   # warm-up steps
WEIGHT_DECAY=${WEIGHT_DECAY:-0.1}
OPTIM=${OPTIM:-adamw}           # adamw, or muon
MUON_SCALE=${MUON_SCALE:-0.2}   # of Muon's steps; 1 as published
STEPS=${STEPS-800}              # steps; empty: EPOCHS decides
EPOCHS=${EPOCHS:-1}
SAVE=${SAVE:-200}               # steps between checkpoints
EVAL=${EVAL:-200}               # steps between evaluations
REPORT=${REPORT:-none}          # mlflow, tensorboard or wandb
NUM_GPUS=${NUM_GPUS:-$(count_gpus)}    # GPUs per node; 0 trains on the CPU
NUM_NODES=${NUM_NODES:-1}
NODE=${NODE:-localhost}         # host of the first node
OUT=${OUT:-}                    # output folder; its default names the settings

################################

share_batch BATCH "$BATCH"
[ "$ARCHITECTURE" = chunk ] && ratio=$CHUNK || ratio=r${BLOCKS// /-}
name="cont_${ARCHITECTURE}${ratio}_z${LATENT}_d${HIDDEN}_${OPTIM}_lr${LR}_bsz${BATCH}x${BLOCK}"

arguments=(
    --model_type continuous_text_autoencoder
    --architecture "$ARCHITECTURE"
    --embedding_size "$EMBEDDING"
    --hidden_size "$HIDDEN"
    --latent_dim "$LATENT"
    --chunk_size "$CHUNK"
    --num_residual_blocks $BLOCKS
    --tie_word_embeddings "$TIED"
    --kl_clip "$KL_CLIP"
    --kl_loss_weight "$KL_WEIGHT"
    --block_size "$BLOCK"
    --per_device_train_batch_size $((BATCH / devices))
    --learning_rate "$LR"
    --warmup_steps "$WU"
    --weight_decay "$WEIGHT_DECAY"
    --optim_family "$OPTIM"
    --muon_scale "$MUON_SCALE"
    --num_train_epochs "$EPOCHS"
    --max_steps "${STEPS:--1}"
    --logging_steps 10
)

start_run "$name" "${arguments[@]}" "$@"
