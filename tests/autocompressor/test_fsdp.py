"""Parameters sharded over two processes (FSDP2): losses, gradients, vectors and tokens of the whole model.

Run by torchrun, this file is the worker of `test_sharded_equals_whole`. It calls `fully_shard` itself: on CPUs the
FSDP of `accelerate launch` becomes plain data parallelism, and would prove nothing.
"""

import json
import sys

import pytest
import torch
import torch.distributed as dist
from modeling_testing import ROOT, random_ids, run_on_two_processes, tiny_autocompressor, variable_autocompressor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.testing import assert_close
from transformers import TrainingArguments


CLOSE = {"rtol": 1e-9, "atol": 1e-9}
LENGTHS = [5, 5, 4]


def make_model(name: str, variable: bool):
    """Of whatever is new in an AutoCompressor something."""
    if variable:
        return variable_autocompressor(name, torch.float64, summary_scale="learned")
    return tiny_autocompressor(name, torch.float64, summary_source="both", summary_scale="learned")


def shard(model):
    """Every layer by itself, and the rest."""
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    for layer in layers:
        fully_shard(layer)
    fully_shard(model)
    assert isinstance(model, FSDPModule) and all(isinstance(weight, DTensor) for weight in model.parameters())
    return model


def substeps(model, ids: torch.LongTensor, **options):
    """Two substeps of one sequence, with detached vectors in between, and their losses."""
    losses, carried = [], {}
    for part in ids.split(sum(LENGTHS), dim=1):
        given = {"labels": part, "segment_lengths": LENGTHS, "output_softprompt": True, "use_cache": False}
        outputs = model(part, **given, **carried, **options)
        outputs.loss.backward()
        losses.append(outputs.loss.detach())
        mask = outputs.softprompt_attention_mask.detach()
        carried = {"softprompt": outputs.softprompt.detach(), "softprompt_attention_mask": mask}
    return torch.stack(losses)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def check(name: str, variable: bool):
    """A row on every process, against both rows in one model without shards."""
    rank = dist.get_rank()
    ids = random_ids(2, 2 * sum(LENGTHS))
    expected, model = make_model(name, variable).train(), shard(make_model(name, variable).train())
    mean = substeps(expected, ids, skip_logits=True)
    mine = substeps(model, ids[rank : rank + 1], skip_logits=True)
    dist.all_reduce(mine)
    if not variable:  # the penalty is a mean over the segments of a call
        assert_close(mine / 2, mean, **CLOSE)
    for (path, sharded), parameter in zip(model.named_parameters(), expected.parameters(), strict=True):
        if parameter.grad is not None and not variable:
            assert_close(whole(sharded.grad), parameter.grad, msg=lambda text, path=path: f"{path}: {text}", **CLOSE)
    expected.eval(), model.eval()
    row = ids[rank : rank + 1]
    options = {"segment_lengths": 5, "return_attention_mask": True}
    for _ in range(2):
        # With shards, rows make steps that they do not keep: all processes must make as many.
        (found, kept), (vectors, mask) = (each.compress(row, **options) for each in (model, expected))
        assert_close(found[kept.bool()], vectors[mask.bool()], **CLOSE)
    vectors, mask = expected.compress(row, **options)
    given = {"softprompt": vectors, "softprompt_attention_mask": mask, "max_new_tokens": 4, "eos_token_id": None}
    assert model.generate(row[:, :6], **given).tolist() == expected.generate(row[:, :6], **given).tolist()


def test_sharded_equals_whole(tmp_path):
    run_on_two_processes(__file__, tmp_path)


@pytest.mark.parametrize("config", ["fsdp2", "deepspeed_zero3"])
def test_configurations_are_read(config, tmp_path):
    path = ROOT / f"run/configs/{config}.json"
    settings = json.loads(path.read_text())
    if config == "fsdp2":
        args = TrainingArguments(tmp_path, fsdp=True, fsdp_config=str(path), use_cpu=True)
        assert args.fsdp_config["version"] == settings["version"] == 2
        assert args.fsdp_config["reshard_after_forward"] is True
    else:
        assert settings["zero_optimization"]["stage"] == 3
        assert settings["train_micro_batch_size_per_gpu"] == settings["gradient_accumulation_steps"] == "auto"


if __name__ == "__main__" and len(sys.argv) > 1:
    dist.init_process_group("gloo")
    for family in ("opt", "llama"):
        for is_variable in (False, True):
            check(family, is_variable)
    dist.destroy_process_group()
