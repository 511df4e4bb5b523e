#!/usr/bin/env bash
# transformers 5.24.0: generate() with prompt lookup, given `input_ids` and, for the model to read, `inputs_embeds`.
# A good guess: the model checks every draft, so that greedy tokens stay the same, whatever was drafted.
# Seen: the first pass reads the embeddings without the draft behind them, at positions moved by its length, and then
#     drops as many tokens of the prompt from the cache: other tokens follow. With the ids alone it is lossless.
# Ours: both together are refused, tests/autocompressor/test_generation.py::test_drafts_and_what_they_do_not_know
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.24.0

python - <<'PYTHON'
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM


torch.manual_seed(0)
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, eos_token_id=None, initializer_range=0.3, **sizes)).eval()
ids = torch.tensor([[9, 8, 7, 6, 9, 8, 7]])
embeddings = model.get_input_embeddings()(ids).detach()


def generate(**options):
    return model.generate(ids, max_new_tokens=8, do_sample=False, **options)[0, 7:].tolist()


plain, by_ids = generate(inputs_embeds=embeddings), generate(prompt_lookup_num_tokens=3)
drafted = generate(inputs_embeds=embeddings, prompt_lookup_num_tokens=3)
print("greedy:                            ", plain)
print("prompt lookup, ids:                ", by_ids)
print("prompt lookup, ids and embeddings: ", drafted)
if not (plain == by_ids != drafted):
    sys.exit("The behaviour changed.")
PYTHON
