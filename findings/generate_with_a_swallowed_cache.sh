#!/usr/bin/env bash
# transformers 5.24.0: a model of one's own, written for 5.23, whose forward takes `past_key_values` and **kwargs.
# A good guess: it goes on working. transformers' own forward takes the old name, and warns that it ends in 5.40.
# Seen: generate() passes the cache under the new name alone, `cache`, and **kwargs swallows it. Every token after the
#     first then follows from one token without context: other text, and no error.
# Ours: every forward shows the installed name, tests/test_cache_names.py::test_forwards_show_the_installed_name
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.24.0

python - <<'PYTHON'
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast


class OwnModel(LlamaForCausalLM):
    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=None, **kwargs):
        calls.append((input_ids.shape[1], past_key_values is not None))
        inputs = {"attention_mask": attention_mask, "past_key_values": past_key_values, "use_cache": use_cache}
        outputs = self.model(input_ids, **inputs)
        logits = self.lm_head(outputs.last_hidden_state)
        return CausalLMOutputWithPast(logits=logits, past_key_values=outputs.past_key_values)


torch.manual_seed(0)
sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
config = LlamaConfig(num_attention_heads=4, eos_token_id=None, initializer_range=0.3, **sizes)
model, calls = OwnModel(config).eval(), []
prompt = torch.randint(5, 64, (1, 10))
right = model.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=False)[0, 10:].tolist()
calls.clear()
found = model.generate(prompt, max_new_tokens=6, do_sample=False)[0, 10:].tolist()
print("without a cache:", right)
print("with a cache:   ", found, "from passes of", [length for length, _ in calls], "tokens, none with a cache")
if found == right or found[0] != right[0] or any(given for _, given in calls):
    sys.exit("The behaviour changed.")
PYTHON
