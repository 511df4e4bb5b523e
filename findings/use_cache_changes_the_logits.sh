#!/usr/bin/env bash
# transformers 5.24.0: one pass over positions that do not count up by one (vectors before a text that share position
# 0, say), without an attention mask.
# A good guess: `use_cache` says what is kept for later, and changes no logits.
# Seen: without a cache such positions are read as documents packed into one row, which must not see each other; with
#     one they are not. The logits differ by several units. An attention mask of ones makes them equal.
# Ours: attention sees positions that count up,
#     tests/autocompressor/test_autocompressor.py::test_llama_attention_sees_consecutive_positions
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.24.0

python - <<'PYTHON'
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM


torch.manual_seed(0)
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, initializer_range=0.3, **sizes)).eval()
ids = torch.randint(5, 64, (1, 8))
positions = torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4]])


def logits(**options):
    return model(ids, position_ids=positions, **options).logits


cached = logits(use_cache=True)
differences = [
    (logits(use_cache=False, **options) - cached).abs().max().item()
    for options in ({}, {"attention_mask": torch.ones_like(ids)})
]
print(f"logits with and without use_cache differ by {differences[0]:.2f}; with a mask of ones by {differences[1]:.0e}")
if not (differences[0] > 0.1 and differences[1] < 1e-4):
    sys.exit("The behaviour changed.")
PYTHON
