#!/usr/bin/env bash
# transformers 5.24.0: a Trainer on a model of one's own that returns the mean loss, and whose forward takes **kwargs.
# A good guess: 8 rows at once, or 8 passes of one row with gradient_accumulation_steps=8, are the same step.
# Seen: **kwargs counts as a promise to divide by `num_items_in_batch`, and so the Trainer divides by nothing. The
#     gradient is 8 times too large. Without **kwargs, or with `accepts_loss_kwargs = False`, it is the same.
# Ours: tests/autocompressor/test_substep_trainer.py::test_accumulation_steps_do_not_matter
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.24.0 accelerate==1.15.0

python - <<'PYTHON'
import sys

import torch
from transformers import PrinterCallback, Trainer, TrainingArguments


class OwnModel(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Embedding(16, 8), torch.nn.Linear(8, 16))

    def forward(self, input_ids, labels=None):
        logits = self.layers(input_ids)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


class WithKwargs(OwnModel):
    def forward(self, input_ids, labels=None, **kwargs):
        return super().forward(input_ids, labels)


class Denied(WithKwargs):
    accepts_loss_kwargs = False


torch.manual_seed(0)
rows = [{"input_ids": row, "labels": row} for row in torch.randint(16, (8, 12))]


def first_step(model_class, steps):
    torch.manual_seed(0)
    batches = {"per_device_train_batch_size": 8 // steps, "gradient_accumulation_steps": steps}
    args = TrainingArguments("out", max_steps=1, logging_steps=1, save_strategy="no", disable_tqdm=True, **batches)
    trainer = Trainer(model_class(), args, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.state.log_history[0]["grad_norm"]


ratios = {
    model_class.__name__: first_step(model_class, 8) / first_step(model_class, 1)
    for model_class in (OwnModel, WithKwargs, Denied)
}
print("gradient norm of 8 passes of one row over that of one pass of 8 rows:")
print({name: round(ratio, 4) for name, ratio in ratios.items()})
if not (abs(ratios["WithKwargs"] - 8) < 0.01 and all(abs(ratios[name] - 1) < 0.01 for name in ("OwnModel", "Denied"))):
    sys.exit("The behaviour changed.")
PYTHON
