# Sourced by every run: goes to the repository's root and into its environment .venv, which is made if there is none, made
# anew if it was never finished, and brought up to date if pyproject.toml or run/constraints.txt changed since.
# An active environment of your own is used instead, if the package in it is the one of this folder.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

active=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
has_this_package() {
    [ -x "$active/bin/auto-compressor" ] && "$active/bin/python" -P -c 'if True:
        import importlib.util, os, sys
        spec = importlib.util.find_spec("auto_compressor")
        sys.exit(not (spec and os.path.samefile(spec.origin, "auto_compressor/__init__.py")))' 2> /dev/null
}
if [ "$active" -ef .venv ] || ! has_this_package; then
    [ -z "$active" ] || [ "$active" -ef .venv ] ||
        echo "env.sh: $active has no auto_compressor of this folder, .venv is used" >&2
    bash run/setup.sh --if-changed || exit 1
    [ "$active" -ef .venv ] || source .venv/bin/activate
fi

# GPUs of this node, the default of NUM_GPUS in every script.
count_gpus() { python -c 'import torch; print(torch.cuda.device_count())'; }

fail() { echo "$(basename "$0"): error: $*" >&2; exit 1; }

# Sets `devices`, the GPUs of all nodes (1 for the CPU): variable $1 has the sequences of a step, $2, over all of them.
share_batch() {
    devices=$((NUM_GPUS > 0 ? NUM_GPUS * NUM_NODES : 1))
    [ $(($2 % devices)) = 0 ] || fail "$1=$2 must be a multiple of the GPUs, $devices."
}

# Sets `data`, the arguments for DATA: bundled, a file, or a dataset by its name; none where it is empty.
find_data() {
    local assets=auto_compressor/assets
    case $DATA in
        "") data=() ;;
        bundled) data=(--train_file $assets/train.txt --validation_file $assets/validation.txt) ;;
        *.txt | *.json | *.jsonl | *.csv | *.parquet) data=(--train_file "$DATA") ;;
        *) data=(--dataset_name "$DATA") ;;
    esac
}

# Runs train.py with the arguments on NUM_GPUS GPUs of each of NUM_NODES nodes (the first is NODE), or on the CPU for 0.
run_train_py() {
    if [ "$NUM_GPUS" = 0 ]; then
        python train.py --use_cpu "$@"
    elif ! [ "$NUM_GPUS" -le "$(count_gpus)" ]; then
        fail "NUM_GPUS must be 0 to $(count_gpus), the GPUs of this node, got $NUM_GPUS."
    elif [ "$NUM_NODES" = 1 ]; then
        torchrun --standalone --nproc_per_node "$NUM_GPUS" train.py --bf16 "$@"
    else
        torchrun --nnodes "$NUM_NODES" --nproc_per_node "$NUM_GPUS" --rdzv-backend c10d \
            --rdzv-endpoint "$NODE:5546" train.py --bf16 "$@"
    fi
}

# Trains and evaluates the run called $1, with the other arguments; it goes on from its last whole checkpoint in OUT.
start_run() {
    local name=$1
    OUT=${OUT:-checkpoints/$name}
    mkdir -p "$OUT"
    echo "Run $name -> $OUT"
    run_train_py --output_dir "$OUT" --run_name "$name" --do_train --do_eval --resume_from_checkpoint true \
        --save_steps "$SAVE" --save_total_limit 2 --eval_strategy steps --eval_steps "${EVAL:-$SAVE}" \
        ${REPORT:+--report_to "$REPORT"} "${@:2}" 2>&1 | tee -a "$OUT/log.txt"
}
