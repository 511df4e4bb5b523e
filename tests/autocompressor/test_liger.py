"""`use_liger_kernel`: the loss by liger-kernel equals ours, and one clear error where there is none.

Where liger-kernel is installed, its kernels can be interpreted on a CPU; it is not among the dependencies:

    pip install triton liger-kernel && TRITON_INTERPRET=1 python -m pytest tests/autocompressor/test_liger.py
"""

import importlib.util
import os

import pytest
import torch
from modeling_testing import gradients, random_ids, tiny_autocompressor
from torch import nn
from torch.testing import assert_close

from args import ByteLMTrainingArguments, HierarchicalTrainingArguments, TrainingArguments
from auto_compressor.autocompressor.losses import chunked_cross_entropy


@pytest.fixture
def liger():
    if os.environ.get("TRITON_INTERPRET") != "1":  # triton reads it when it is imported
        pytest.skip("TRITON_INTERPRET is not 1")
    pytest.importorskip("liger_kernel.transformers")


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("masked", [0, 0.4, 1])
def test_equals_ours(liger, bias, masked):
    torch.manual_seed(0)
    head, states = nn.Linear(16, 37, bias=bias), torch.randn(2, 11, 16, requires_grad=True)
    targets = torch.randint(37, (2, 11)).masked_fill(torch.rand(2, 11) < masked, -100)
    losses = [chunked_cross_entropy(head, states, targets, 37, use_liger_kernel=use) for use in (True, False)]
    assert type(losses[0].grad_fn).__name__ == "LigerFusedLinearCrossEntropyFunctionBackward"
    assert_close(*losses)
    assert_close(*(torch.autograd.grad(loss * 0.7, [states, *head.parameters()]) for loss in losses))


def test_a_model_equals_itself(liger):
    model, ids = tiny_autocompressor("opt", torch.float32), random_ids(2, 12)
    options = {"labels": ids, "segment_lengths": 4, "skip_logits": True, "use_cache": False}
    losses = [model(ids, use_liger_kernel=use, **options).loss for use in (True, False)]
    assert_close(*losses)
    assert_close(*(gradients(model, loss) for loss in losses))


@pytest.mark.parametrize("arguments_class", [ByteLMTrainingArguments, HierarchicalTrainingArguments])
def test_families_without_it(arguments_class, tmp_path):
    with pytest.raises(ValueError, match="`use_liger_kernel` must be False: .* AutoCompressors alone"):
        arguments_class(tmp_path, use_liger_kernel=True)


def test_it_must_be_installed_and_have_a_gpu(tmp_path, monkeypatch):
    for spec, message in ((None, "needs liger-kernel: pip install"), (object(), "needs a GPU with CUDA")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, spec=spec: spec)
        with pytest.raises(ValueError, match=f"`use_liger_kernel` {message}"):
            TrainingArguments(tmp_path, use_liger_kernel=True, use_cpu=True)
