#!/usr/bin/env bash
# accelerate 1.15.0, torch 2.13.0: `accelerate launch` of two processes with a config file of FSDP2 and `use_cpu:
# true`.
# A good guess: the model is sharded over the two processes, or the file is refused.
# Seen: nothing is said. Each process is alone, is the main process, and trains a model of its own that is neither
#     sharded nor averaged with the other. A passing run on CPUs says nothing about FSDP.
source "$(dirname "$0")/environment.sh" torch==2.13.0 accelerate==1.15.0

cat > fsdp.yaml <<'YAML'
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config: {fsdp_version: 2, fsdp_auto_wrap_policy: NO_WRAP}
mixed_precision: "no"
num_machines: 1
num_processes: 2
use_cpu: true
YAML
cat > step.py <<'PYTHON'
import os

import torch
from accelerate import Accelerator


accelerator = Accelerator()
torch.manual_seed(0)
model = torch.nn.Linear(1, 1, bias=False)
model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
accelerator.backward(model(torch.full((1, 1), float(os.environ["RANK"]))).sum())
optimizer.step()
print(
    f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}: accelerate counts {accelerator.num_processes},"
    f" main {accelerator.is_main_process}, {type(model).__name__} of {type(model.weight).__name__},"
    f" weight after a step {model.weight.item():.4f}"
)
PYTHON
accelerate launch --config_file fsdp.yaml --main_process_port 0 step.py | sort | tee output

expected=": accelerate counts 1, main True, Linear of Parameter, weight after a step"
if [ "$(grep -c "$expected" output)" != 2 ] || [ "$(sed 's/.* step //' output | uniq | wc -l)" != 2 ]; then
    echo "The behaviour changed." >&2
    exit 1
fi
