#!/usr/bin/env bash
# transformers 5.24.0: a Trainer on a subclass of LlamaForCausalLM that changes nothing but the name.
# A good guess: it trains like its parent.
# Seen: the kind of loss is found in the name of the class. Without "ForCausalLM" in it the Trainer divides by the
#     number of all labels, where for the parent it leaves out the first of each row, which is never predicted. Loss
#     and gradient are smaller by 1/8 for rows of 8 tokens. Called with the same rows, both models return the same
#     loss.
# Ours: tests/autocompressor/test_autocompressor.py::test_trainer_counts_the_targets
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.24.0 accelerate==1.15.0

python - <<'PYTHON'
import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments


class LlamaReader(LlamaForCausalLM):
    pass


torch.manual_seed(0)
rows = [{"input_ids": row, "labels": row} for row in torch.randint(5, 64, (4, 8))]


def losses(model_class):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = model_class(LlamaConfig(num_attention_heads=4, **sizes))
    ids = torch.stack([row["labels"] for row in rows])
    called = model(input_ids=ids, labels=ids).loss.item()
    settings = {"max_steps": 1, "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True}
    args = TrainingArguments("out", per_device_train_batch_size=4, **settings)
    trainer = Trainer(model, args, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return called, trainer.state.log_history[0]["loss"]


parent, child = losses(LlamaForCausalLM), losses(LlamaReader)
for name, (called, trained) in (("LlamaForCausalLM", parent), ("LlamaReader", child)):
    print(f"{name}: the model returns the loss {called:.4f}, the Trainer {trained:.4f} in a step with the same rows")
same = abs(parent[0] - parent[1]) < 1e-4 and abs(parent[0] - child[0]) < 1e-4
if not (same and abs(child[1] / child[0] - 7 / 8) < 1e-4):
    sys.exit("The behaviour changed.")
PYTHON
