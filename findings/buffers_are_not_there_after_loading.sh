#!/usr/bin/env bash
# transformers 5.24.0: a model whose __init__ computes a table into a buffer with persistent=False, saved and loaded.
# A good guess: what is not saved is computed again by __init__, as when the model was made.
# Seen: __init__ runs without memory for its tensors. Weights are then filled from the file, and the table is left as
#     uninitialised memory: any numbers, now and then the right ones. torch's deterministic mode, which fills such
#     memory with NaN, shows it.
# Ours: all buffers are equal after loading, tests/modeling_testing.py::test_save_and_load
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.24.0

python - <<'PYTHON'
import sys

import torch
from transformers import PreTrainedConfig, PreTrainedModel


class Config(PreTrainedConfig):
    model_type = "with_a_table"


class Model(PreTrainedModel):
    config: Config

    def __init__(self, config):
        super().__init__(config)
        self.linear = torch.nn.Linear(8, 8)
        self.register_buffer("table", torch.linspace(1, 2, 8), persistent=False)
        self.post_init()


torch.manual_seed(0)
made = Model(Config())
made.save_pretrained("model")
torch.use_deterministic_algorithms(True)
loaded = Model.from_pretrained("model")
print("weights are equal after loading:", torch.equal(made.linear.weight, loaded.linear.weight))
print("table made: ", made.table.tolist())
print("table loaded:", loaded.table.tolist())
if not (torch.equal(made.linear.weight, loaded.linear.weight) and loaded.table.isnan().all()):
    sys.exit("The behaviour changed.")
PYTHON
