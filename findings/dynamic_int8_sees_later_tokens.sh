#!/usr/bin/env bash
# torch 2.13.0: a causal language model of transformers 5.24.0 after torch.ao.quantization.quantize_dynamic.
# A good guess: rounding makes its logits a little worse, and it stays causal.
# Seen: activations are rounded with one scale for all tokens of all rows. The last token moves the logits of all
#     earlier ones, and another row in the batch moves those of this one: a likelihood depends on what comes later.
# Ours: the check of causality catches such leaks, tests/test_causality.py::test_leaks_are_caught
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.24.0

python - <<'PYTHON'
import sys

import torch
from torch.ao.quantization import quantize_dynamic
from transformers import LlamaConfig, LlamaForCausalLM


torch.manual_seed(0)
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, initializer_range=0.3, **sizes)).eval()
first, second = torch.randint(5, 64, (2, 1, 12))
changed = torch.cat([first[:, :-1], second[:, -1:]], dim=1)


def leaks(model):
    """How far another last token moves the earlier logits, and another row those of the first."""
    logits = model(first).logits
    later = model(changed).logits[:, :-1] - logits[:, :-1]
    row = model(torch.cat([first, second])).logits[:1] - logits
    return later.abs().max().item(), row.abs().max().item()


plain, quantized = leaks(model), leaks(quantize_dynamic(model, {torch.nn.Linear}))
for name, (later, row) in (("float32", plain), ("int8", quantized)):
    print(f"{name}: a later token moves earlier logits by {later:.1e}, another row moves them by {row:.1e}")
if not (max(plain) < 1e-4 and min(quantized) > 0.01):
    sys.exit("The behaviour changed.")
PYTHON
