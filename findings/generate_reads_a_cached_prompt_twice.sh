#!/usr/bin/env bash
# transformers 5.24.0: generate() with a cache that already holds the whole prompt.
# A good guess: the cache saves the pass over the prompt, and the tokens are those of a run without it.
# Seen: the whole prompt is read a second time behind itself, every token of it is in the cache twice, and other
#     tokens follow. A cache of all but the last token gives the right ones.
# Ours: the tokens are the same, tests/autocompressor/test_generation.py::test_cache_of_the_whole_prompt
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.24.0

python - <<'PYTHON'
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM


torch.manual_seed(0)
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, eos_token_id=None, initializer_range=0.3, **sizes)).eval()
prompt = torch.randint(5, 64, (1, 10))


def generate(**options):
    mask = torch.ones_like(prompt)
    return model.generate(prompt, attention_mask=mask, max_new_tokens=8, do_sample=False, **options)[0, 10:].tolist()


def cached(num_tokens):
    cache = model(prompt[:, :num_tokens], use_cache=True).cache
    tokens = generate(cache=cache)
    return tokens, cache.get_seq_length()


plain, (whole, whole_length), (all_but_one, length) = generate(), cached(10), cached(9)
print("without a cache:        ", plain)
print("all but the last cached:", all_but_one, "and then", length, "positions are cached")
print("the whole prompt cached:", whole, "and then", whole_length)
if not (all_but_one == plain != whole and whole_length == length + 10):
    sys.exit("The behaviour changed.")
PYTHON
