# Sourced by every run: goes to the repository's root and into its environment, which is made if there is none.
# An active environment of your own is used instead, if the package is installed there.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] || ! command -v auto-compressor > /dev/null; then
    [ -f .venv/installed ] || bash run/setup.sh || exit 1
    source .venv/bin/activate
fi
