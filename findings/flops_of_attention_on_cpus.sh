#!/usr/bin/env bash
# torch 2.13.0: `FlopCounterMode` over causal attention of 64 queries on a CPU, written as two products and as
# `scaled_dot_product_attention`.
# A good guess: the counter, which knows `scaled_dot_product_attention`, counts about as many operations for both.
# Seen: 524,288 and 0, without a word. On a CPU the function runs as an operation that the counter has no formula for,
#     so that a floor made of its counts leaves attention out, and the longer the text, the more.
source "$(dirname "$0")/environment.sh" torch==2.13.0 numpy==2.4.3

python - <<'PYTHON'
import sys

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import FlopCounterMode

query, key, value = (torch.randn(1, 2, 64, 16) for _ in range(3))


def count(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


products = count(lambda: (query @ key.transpose(2, 3)).softmax(-1) @ value)
attention = count(lambda: scaled_dot_product_attention(query, key, value, is_causal=True))
print(f"as two products: {products:,} operations; by scaled_dot_product_attention: {attention:,}")
if not (products == 2 * 2 * 2 * 64 * 64 * 16 and attention == 0):
    sys.exit("The behaviour changed.")
PYTHON
