#!/usr/bin/env bash
# Checks the types of the package with mypy, and fails if a file has more errors than run/types.txt says. The counts
# there are those of the versions in run/constraints.txt.
#     bash run/types.sh
#     bash run/types.sh --update    # writes the counts of today
set -euo pipefail
source "$(dirname "$0")/env.sh"

mkdir -p build
status=0
python -m mypy > build/types.log || status=$?
[ "$status" -le 1 ] || { cat build/types.log >&2; exit "$status"; }    # 1: there are errors in the types
sed -n 's/^\([^:]*\.py\):[0-9]*: error: .*/\1/p' build/types.log | sort | uniq -c | awk '{print $1, $2}' > build/types.txt
[ "${1:-}" != --update ] || cp build/types.txt run/types.txt

more=$(awk 'FILENAME == ARGV[1] {known[$2] = $1; next} $1 > known[$2] {print $2}' run/types.txt build/types.txt)
if [ -n "$more" ]; then
    for file in $more; do grep "^$file:[0-9]*: error: " build/types.log; done
    echo "types.sh: error: there are more errors than run/types.txt says in: $(echo $more)" >&2
    exit 1
fi
echo "types.sh: $(awk '{sum += $1} END {print sum + 0}' build/types.txt) errors, no file has more than run/types.txt says"
