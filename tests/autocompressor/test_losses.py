"""`losses.py`: chunked equals direct, in values and gradients, and never holds many logits."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from auto_compressor.autocompressor import losses
from auto_compressor.autocompressor.losses import (
    chunked_cross_entropy,
    mean_over_targets,
    shift_labels_left,
    summed_cross_entropy,
)


VOCAB_SIZE = 13


class RecordingHead(nn.Linear):
    """A head that records how many logits it made at a time."""

    def __init__(self, hidden_size: int = 6, dtype=torch.float32):
        super().__init__(hidden_size, VOCAB_SIZE, dtype=dtype)
        self.sizes = []

    def forward(self, hidden_states):
        logits = super().forward(hidden_states)
        self.sizes.append(logits.numel())
        return logits


@pytest.fixture(params=[1, VOCAB_SIZE, 3 * VOCAB_SIZE + 5, 10**6], ids=["less", "one", "three", "all"])
def tokens_in_memory(request, monkeypatch):
    monkeypatch.setattr(losses, "MAX_LOGITS_IN_MEMORY", request.param)
    return max(1, request.param // VOCAB_SIZE)


def make_targets():
    targets = torch.randint(VOCAB_SIZE, (2, 7))
    targets[0, 2], targets[1, 4:] = -100, -100
    return targets


def test_known_values():
    labels = torch.tensor([[3, 5, -100, 7], [1, 2, 3, 4]])
    assert shift_labels_left(labels).tolist() == [[5, -100, 7, -100], [2, 3, 4, -100]]
    assert shift_labels_left(labels[:, :1]).tolist() == [[-100], [-100]]
    uniform = torch.zeros(2, 4, VOCAB_SIZE)
    assert_close(summed_cross_entropy(uniform, labels), 7 * torch.tensor(VOCAB_SIZE).log())
    certain = F.one_hot(labels.clamp(min=0), VOCAB_SIZE) * 1e4
    assert summed_cross_entropy(certain, labels) == 0


def test_chunked_equals_direct(tokens_in_memory):
    head, targets = RecordingHead(), make_targets()
    hidden_states = torch.randn(2, 7, 6, requires_grad=True)
    parameters = [hidden_states, head.weight, head.bias]
    direct = F.cross_entropy(head(hidden_states).flatten(0, 1), targets.flatten(), reduction="sum")
    assert_close(summed_cross_entropy(head(hidden_states), targets), direct)
    expected = torch.autograd.grad(direct, parameters)
    head.sizes.clear()
    chunked = chunked_cross_entropy(head, hidden_states, targets, VOCAB_SIZE)
    assert_close(chunked, direct)
    assert_close(torch.autograd.grad(chunked, parameters), expected)
    assert max(head.sizes) <= tokens_in_memory * VOCAB_SIZE
    # Forward and backward, each token once.
    assert sum(head.sizes) == 2 * targets.numel() * VOCAB_SIZE


def test_logits_are_not_saved(tokens_in_memory):
    head, targets, saved = RecordingHead(), make_targets(), []
    hidden_states = torch.randn(2, 7, 6, requires_grad=True)

    def pack(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        chunked_cross_entropy(head, hidden_states, targets, VOCAB_SIZE)
    assert not [shape for shape in saved if VOCAB_SIZE in shape]


def test_gradcheck(monkeypatch):
    """Exact in float64, but that the cross-entropy itself is taken in float32."""
    monkeypatch.setattr(losses, "MAX_LOGITS_IN_MEMORY", 3 * VOCAB_SIZE)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    targets, weight = make_targets(), torch.randn(VOCAB_SIZE, 6, dtype=torch.float64, requires_grad=True)
    hidden_states = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)

    def loss(hidden_states, weight):
        return chunked_cross_entropy(lambda chunk: F.linear(chunk, weight), hidden_states, targets, VOCAB_SIZE)

    assert torch.autograd.gradcheck(loss, (hidden_states, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_logits_are_summed_in_float32(dtype):
    head, hidden_states = RecordingHead(dtype=dtype), torch.randn(1, 3000, 6, dtype=dtype)
    targets = torch.randint(VOCAB_SIZE, (1, 3000))
    loss = chunked_cross_entropy(head, hidden_states, targets, VOCAB_SIZE)
    assert loss.dtype == torch.float32
    # In float16 the sum of 3000 tokens would be off by several units.
    exact = F.cross_entropy(head(hidden_states)[0].double(), targets[0], reduction="sum")
    assert_close(loss.double(), exact, rtol=1e-5, atol=0)


def test_mean_over_targets():
    targets, summed = torch.tensor([[1, 2, -100]]), torch.tensor(6.0)
    assert mean_over_targets(summed, targets) == 3
    assert mean_over_targets(summed, targets, 4) == 1.5
    assert mean_over_targets(summed, targets, torch.tensor(12)) == 0.5
    nothing = torch.full((1, 3), -100)
    assert mean_over_targets(torch.tensor(0.0), nothing) == 0


def test_no_targets():
    head, hidden_states = RecordingHead(), torch.randn(2, 7, 6, requires_grad=True)
    targets = torch.full((2, 7), -100)
    loss = mean_over_targets(chunked_cross_entropy(head, hidden_states, targets, VOCAB_SIZE), targets)
    loss.backward()
    assert loss == 0 and (hidden_states.grad == 0).all() and (head.weight.grad == 0).all()
