#!/usr/bin/env bash
# peft 0.21.2 on transformers 5.24.0: LoRA on the head of a model that ties it to its embeddings.
# A good guess: merge_and_unload gives the model that was trained; at the latest with ensure_weight_tying=True, which
#     a warning of peft recommends.
# Seen: the shared tensor gets the update of the head, and the embeddings read it too. With ensure_weight_tying=True
#     both ends have the same update, and the shared tensor gets it twice. The merged model is another model each
#     time, by several logits. Adapters of the attention merge to rounding.
# Ours: such adapters are refused before training, tests/test_resuming.py::test_tied_embeddings_get_no_adapters
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.24.0 peft==0.21.2

python - <<'PYTHON'
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def off(target, **options):
    """How far the logits of the merged model are from those of the adapted one."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, tie_word_embeddings=True, **sizes)).eval()
    config = LoraConfig(target_modules=[target], init_lora_weights=False, task_type="CAUSAL_LM", **options)
    adapted = get_peft_model(model, config).eval()
    ids = torch.arange(5, 25)[None]
    expected = adapted(input_ids=ids).logits
    return (adapted.merge_and_unload()(input_ids=ids).logits - expected).abs().max().item()


attention, head, both = off("q_proj"), off("lm_head"), off("lm_head", ensure_weight_tying=True)
print(f"logits of the merged model are off by {attention:.0e} for q_proj, {head:.2f} for lm_head,")
print(f"{both:.2f} for lm_head with ensure_weight_tying=True")
if not (attention < 1e-4 and head > 0.1 and both > 0.1):
    sys.exit("The behaviour changed.")
PYTHON
