#!/usr/bin/env bash
# transformers 5.24.0: the library's own sdpa function, registered under another name with AttentionInterface.
# A good guess: the same function gives the same logits.
# Seen: masks are made by the name too. For a name without one in AttentionMaskInterface there is none, and a padded
#     row attends to its padding, without an error.
# Ours: the mask is registered with the function,
# tests/activation_compressor/test_merging_cache.py::test_padding_after_slots
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.24.0

python - <<'PYTHON'
import sys

import torch
from transformers import AttentionInterface, AttentionMaskInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


torch.manual_seed(0)
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, initializer_range=0.3, **sizes)).eval()
ids = torch.randint(5, 64, (1, 8))
mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
alone = model(ids[:, 3:]).logits


def off(name):
    """How far the row with padding is from itself without."""
    model.set_attn_implementation(name)
    padded = model(ids, attention_mask=mask, position_ids=positions).logits[:, 3:]
    return (padded - alone).abs().max().item()


AttentionInterface.register("renamed", sdpa_attention_forward)
sdpa, renamed = off("sdpa"), off("renamed")
AttentionMaskInterface.register("renamed", sdpa_mask)
both = off("renamed")
print(f"padding moves the logits by {sdpa:.0e} under sdpa, by {renamed:.2f} under the other name,")
print(f"by {both:.0e} with a mask registered under that name too")
if not (sdpa < 1e-4 and both < 1e-4 and renamed > 0.1):
    sys.exit("The behaviour changed.")
PYTHON
