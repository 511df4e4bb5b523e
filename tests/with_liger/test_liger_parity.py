"""The loss by liger-kernel equals ours.

It is not among the dependencies, and this folder is not among the tests that run by default. Triton reads the variable
when it is imported, and then interprets the kernels on a CPU:

    pip install triton liger-kernel && TRITON_INTERPRET=1 python -m pytest tests/with_liger
"""

import pytest
import torch
from modeling_testing import gradients, random_ids, tiny_autocompressor
from torch import nn
from torch.testing import assert_close

from auto_compressor.autocompressor.losses import chunked_cross_entropy


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("masked", [0, 0.4, 1])
def test_equals_ours(bias, masked):
    torch.manual_seed(0)
    head, states = nn.Linear(16, 37, bias=bias), torch.randn(2, 11, 16, requires_grad=True)
    targets = torch.randint(37, (2, 11)).masked_fill(torch.rand(2, 11) < masked, -100)
    losses = [chunked_cross_entropy(head, states, targets, 37, use_liger_kernel=use) for use in (True, False)]
    assert type(losses[0].grad_fn).__name__ == "LigerFusedLinearCrossEntropyFunctionBackward"
    assert_close(*losses)
    assert_close(*(torch.autograd.grad(loss * 0.7, [states, *head.parameters()]) for loss in losses))


def test_a_model_equals_itself():
    model, ids = tiny_autocompressor("opt", torch.float32), random_ids(2, 12)
    options = {"labels": ids, "segment_lengths": 4, "skip_logits": True, "use_cache": False}
    losses = [model(ids, use_liger_kernel=use, **options).loss for use in (True, False)]
    assert_close(*losses)
    assert_close(*(gradients(model, loss) for loss in losses))
