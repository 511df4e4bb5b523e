#!/usr/bin/env bash
# From nothing to a working AutoCompressor in a few minutes on a laptop's CPU, without a hub: trains one on the bundled
# English text, compares what it makes of a context with no context and with all of it, and generates.
#     bash run/quickstart.sh
#     BASE=smollm2 bash run/quickstart.sh     # LoRA on SmolLM2-135M instead, half an hour (SMOLLM2=1 bash run/setup.sh first)
set -euo pipefail
source "$(dirname "$0")/env.sh"
