#!/usr/bin/env bash
# peft 0.21.2 on transformers 5.24.0: generate() of a model with a trained prefix, or a trained prompt.
# A good guess: its greedy tokens are the most likely ones of its own forward.
# Seen: peft passes the prefix as `past_key_values`, and generate() knows the cache as `cache`. Prefix tuning is
#     ignored: the tokens are those of the model without it. A prompt is put before every new token again, and other
#     tokens follow. There is no error.
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.24.0 peft==0.21.2

python - <<'PYTHON'
import sys

import torch
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


ids = torch.tensor([[9, 23, 42, 7, 31, 12, 55, 18]])


def base():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(num_attention_heads=4, eos_token_id=None, initializer_range=0.3, **sizes)
    return LlamaForCausalLM(config).eval()


def generate(model):
    mask = torch.ones_like(ids)
    return model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False)[0, 8:].tolist()


def by_forward(model):
    text = ids
    for _ in range(8):
        text = torch.cat([text, model(input_ids=text).logits[:, -1:].argmax(dim=-1)], dim=1)
    return text[0, 8:].tolist()


plain, found, right = generate(base()), {}, {}
print("the model without it:", plain)
for config_class in (PrefixTuningConfig, PromptTuningConfig):
    model = get_peft_model(base(), config_class(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=2)
    name = config_class.__name__.removesuffix("Config")
    found[name], right[name] = generate(model), by_forward(model)
    print(f"{name}: generate {found[name]}, forward {right[name]}")
if not (found["PrefixTuning"] == plain != right["PrefixTuning"] and found["PromptTuning"] != right["PromptTuning"]):
    sys.exit("The behaviour changed.")
PYTHON
