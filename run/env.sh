# Sourced by every run: goes to the repository's root and into its environment, which is made if there is none.
# An environment of your own is used as it is, if the requirements are there: activate it first.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && python -c "import auto_compressor, datasets, peft, rich" 2> /dev/null; then
    :
else
    [ -f .venv/installed ] || bash run/setup.sh || exit 1
    source .venv/bin/activate
fi
