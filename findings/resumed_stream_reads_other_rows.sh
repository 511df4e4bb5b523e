#!/usr/bin/env bash
# transformers 5.24.0, datasets 5.2.0: a Trainer on a streamed dataset goes on from a checkpoint.
# A good guess: it ends with the weights of the run that was not interrupted, as it does for a dataset in memory.
# Seen: so it is in the first pass over the stream. From a checkpoint within a later pass the run goes on with the
#     first row of the stream instead of the row where it stopped, and ends with other weights. Nothing is said.
# Ours: the weights are the same bytes, tests/test_resuming.py::test_a_resumed_stream_goes_on
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.24.0 datasets==5.2.0 accelerate==1.15.0

python - <<'PYTHON'
import sys

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, Trainer, TrainingArguments, set_seed


torch.manual_seed(0)
rows = Dataset.from_list([{"input_ids": row, "labels": row} for row in torch.randint(5, 64, (8, 12)).tolist()])
settings = {"per_device_train_batch_size": 2, "max_steps": 10, "save_steps": 2, "learning_rate": 1e-2, "seed": 1}


def train(dataset, folder, **resume):
    set_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, **sizes))
    args = TrainingArguments(folder, disable_tqdm=True, logging_strategy="no", **settings)
    trainer = Trainer(model, args, train_dataset=dataset)
    trainer.remove_callback(PrinterCallback)
    trainer.train(**resume)
    return torch.nn.utils.parameters_to_vector(model.parameters())


def off(dataset, folder):
    """How far resumed runs end from the whole one: from a step of the first pass of four steps, and of the second."""
    whole = train(dataset, folder)
    resumed = [train(dataset, folder, resume_from_checkpoint=f"{folder}/checkpoint-{step}") for step in (2, 6)]
    return [(weights - whole).abs().max().item() for weights in resumed]


memory, stream = off(rows, "memory"), off(rows.to_iterable_dataset(), "stream")
print(f"weights after resuming in the first pass are off by {memory[0]:.1e} in memory, {stream[0]:.1e} streamed,")
print(f"after resuming in the second by {memory[1]:.1e} in memory, {stream[1]:.1e} streamed")
if not (max(memory) == stream[0] == 0 and stream[1] > 1e-4):
    sys.exit("The behaviour changed.")
PYTHON
