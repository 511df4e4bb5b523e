#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0: `save_pretrained` of a custom model after `register_for_auto_class`, sharded by
# `fully_shard` or not.
# A good guess: the folder has the code of the model, and `auto_map` in its config names its class.
# Seen: sharding gives the model a class that is made in a module of torch. Seven private files of torch are saved too,
#     and `auto_map` names `_fsdp_init.FSDPTinyModel`, which no file defines: nobody can load the folder.
# Ours: tests/autocompressor/test_fsdp.py::test_sharded_equals_whole
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.24.0 numpy==2.4.3

cat > tiny_torch_model.py <<'CODE'
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel


class TinyConfig(PreTrainedConfig):
    model_type = "tiny_of_our_own"


class TinyModel(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.layer = nn.Linear(4, 4)
        self.post_init()
CODE
cat > run.py <<'PYTHON'
import os
import sys

import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, os.getcwd())
code = __import__("tiny_torch_model")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
code.TinyConfig.register_for_auto_class()
code.TinyModel.register_for_auto_class("AutoModel")


def saved(model, folder):
    plain = code.TinyModel(code.TinyConfig())
    weights = {name: tensor.detach().clone() for name, tensor in plain.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)
    return sorted(name for name in os.listdir(folder) if name.endswith(".py")), model.config.auto_map["AutoModel"]


whole, sharded = (code.TinyModel(code.TinyConfig()) for _ in range(2))
fully_shard(sharded, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
(files, name), (other, other_name) = saved(whole, "whole"), saved(sharded, "sharded")
print(f"whole: {files}, {name}; sharded: {other}, {other_name}")
good = files == ["tiny_torch_model.py"] and name == "tiny_torch_model.TinyModel"
if not (good and other_name == "_fsdp_init.FSDPTinyModel" and len(other) == 8):
    sys.exit("The behaviour changed.")
PYTHON
python run.py
