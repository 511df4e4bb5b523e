#!/usr/bin/env bash
# torchao 0.18.0: weights of a transformers 5.24.0 model with a tied head become int8 by quantize_().
# A good guess: the model gets smaller, and head and embeddings stay one tensor, as its config says.
# Seen: the head gets an int8 tensor of its own, the embeddings stay float32. With many words and small layers, as
#     small language models have, the model gets larger, and its config still says that they are tied.
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.24.0 torchao==0.18.0

python - <<'PYTHON'
import sys

import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import LlamaConfig, LlamaForCausalLM


def num_bytes(model):
    """Of the weights, each memory counted once."""
    sizes = {}
    for weight in model.parameters():
        parts = [weight]
        if hasattr(weight, "__tensor_flatten__"):
            parts = [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]
        sizes |= {part.data_ptr(): part.nbytes for part in parts}
    return sum(sizes.values())


torch.manual_seed(0)
sizes = {"vocab_size": 20_000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, tie_word_embeddings=True, **sizes))
tied, before = model.lm_head.weight is model.model.embed_tokens.weight, num_bytes(model)
quantize_(model, Int8WeightOnlyConfig())
still_tied, after = model.lm_head.weight is model.model.embed_tokens.weight, num_bytes(model)
print(f"float32: {before:,} bytes, tied: {tied}")
print(f"int8:    {after:,} bytes, tied: {still_tied}; its config says {model.config.tie_word_embeddings}")
if not (tied and not still_tied and model.config.tie_word_embeddings and after > before):
    sys.exit("The behaviour changed.")
PYTHON
