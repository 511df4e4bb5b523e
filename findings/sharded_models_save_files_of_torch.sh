#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0: `save_pretrained` of a custom model after `register_for_auto_class`, sharded by
# `fully_shard` or not.
# A good guess: the folder has the code of the model, and `auto_map` in its config names its class.
# Seen: sharding gives the model a class that is made in a module of torch. Seven private files of torch are saved too,
#     and `auto_map` names `_fsdp_init.FSDPTinyModel`, which no file defines: nobody can load the folder.
source "$(dirname "$0")/environment.sh" torch==2.13.0 transformers==5.24.0 numpy==2.4.3

cat > tiny_model.py <<'PYTHON'
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
PYTHON
cat > run.py <<'PYTHON'
import json
import os
from pathlib import Path

import torch.distributed as dist
from tiny_model import TinyConfig, TinyModel
from torch.distributed.fsdp import fully_shard

os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
TinyConfig.register_for_auto_class()
TinyModel.register_for_auto_class("AutoModel")


def saved(model, folder):
    weights = {name: tensor.detach().clone() for name, tensor in TinyModel(TinyConfig()).state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)
    code = sorted(path.name for path in Path(folder).glob("*.py"))
    return code, json.loads(Path(folder, "config.json").read_text())["auto_map"]["AutoModel"]


whole, sharded = TinyModel(TinyConfig()), TinyModel(TinyConfig())
fully_shard(sharded, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
(code, name), (other, other_name) = saved(whole, "whole"), saved(sharded, "sharded")
print(f"whole: {code}, {name}; sharded: {other}, {other_name}")
good = code == ["tiny_model.py"] and name == "tiny_model.TinyModel"
raise SystemExit(not (good and other_name == "_fsdp_init.FSDPTinyModel" and len(other) == 8))
PYTHON
python run.py
