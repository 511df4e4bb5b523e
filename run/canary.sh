#!/usr/bin/env bash
# Runs the tests on the newest releases of everything, whatever run/constraints.txt and the upper bounds of pyproject.toml
# say; FutureWarnings and DeprecationWarnings at the package's own lines are errors. Prints a table of versions and of
# failing tests, also in build/canary.md, and fails if a test does.
#     bash run/canary.sh                                  # in a temporary environment
#     bash run/canary.sh tests/autocompressor/test_generation.py -k beams
#     TORCH=torch bash run/canary.sh                      # the newest torch as well, several GB; else the tested one
#     CANARY=/tmp/canary bash run/canary.sh               # in this folder, which must be new and is kept
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-$(grep '^torch==' run/constraints.txt)}
CANARY=${CANARY:-}

################################

if [ -e "$CANARY" ]; then
    echo "canary.sh: error: CANARY must be a folder that does not exist yet, got $CANARY." >&2
    exit 1
fi
if [ -z "$CANARY" ]; then
    CANARY=$(mktemp -d)
    trap 'rm -rf "$CANARY"' EXIT
fi
mkdir -p build
rm -f build/canary.*

"$PYTHON" -m venv "$CANARY"
source "$CANARY/bin/activate"    # env.sh, of every script that the tests run, finds the package in it and stays
python -m pip install --quiet --disable-pip-version-check "$TORCH"
python -m pip freeze | grep '^torch==' > "$CANARY/torch.txt"
python run/canary.py requirements > "$CANARY/requirements.txt"
python -m pip install --quiet --disable-pip-version-check -c "$CANARY/torch.txt" -r "$CANARY/requirements.txt"
python -m pip install --quiet --disable-pip-version-check --no-deps -e .
python -m pip freeze --exclude-editable > build/canary.txt

status=0
warnings=$(python run/canary.py warnings)
AUTO_COMPRESSOR_CANARY=1 bash run/test.sh -o "filterwarnings=$warnings" --junitxml build/canary.xml "$@" || status=$?
python run/canary.py table build/canary.txt build/canary.xml | tee build/canary.md
exit "$status"
