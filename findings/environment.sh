# Sourced by each finding, with the packages that it pins: `source environment.sh NAME==VERSION ...`
# Makes a virtual environment of these packages in a temporary folder, goes there, and removes all of it at exit.
# FINDINGS_VENV names an environment to use and keep instead, so that several findings download things once.
set -euo pipefail
folder=$(mktemp -d)
venv=$(realpath -m "${FINDINGS_VENV:-$folder/venv}")
trap 'rm -rf "$folder"' EXIT
cd "$folder"

[ -d "$venv" ] || python3 -m venv "$venv"
"$venv/bin/python" -m pip install -qq --disable-pip-version-check "$@"
PATH=$venv/bin:$PATH

# On the CPU, one thread, offline, and without the modules of any other place.
unset PYTHONPATH PYTHONHOME
export CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONWARNINGS=ignore
export TRANSFORMERS_VERBOSITY=error HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1
echo "With $*:"
