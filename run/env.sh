# Sourced by every run: goes to the repository's root and into its environment, which is made if there is none.
# An active environment of your own is used instead, if the package is installed there.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] || ! command -v auto-compressor > /dev/null; then
    [ -f .venv/installed ] || bash run/setup.sh || exit 1
    source .venv/bin/activate
fi

# Runs train.py with the arguments on NUM_GPUS GPUs of each of NUM_NODES nodes (the first is NODE), or on the CPU for 0.
run_train_py() {
    if [ "$NUM_GPUS" = 0 ]; then
        python train.py --use_cpu "$@"
    elif [ "$NUM_NODES" = 1 ]; then
        torchrun --standalone --nproc_per_node "$NUM_GPUS" train.py --bf16 "$@"
    else
        torchrun --nnodes "$NUM_NODES" --nproc_per_node "$NUM_GPUS" --rdzv-backend c10d \
            --rdzv-endpoint "$NODE:5546" train.py --bf16 "$@"
    fi
}
