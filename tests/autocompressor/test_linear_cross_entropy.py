"""The loss that makes its gradients in the forward pass equals the plain one, and never holds many logits."""

import copy
from functools import partial

import pytest
import torch
from modeling_testing import random_ids, tiny_autocompressor
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from auto_compressor import OPTAutoCompressorModel
from auto_compressor.autocompressor import losses
from auto_compressor.autocompressor.linear_cross_entropy import LinearLoss, is_fused, is_plain_linear
from auto_compressor.autocompressor.losses import chunked_cross_entropy, chunked_divergence


VOCAB_SIZE, HIDDEN_SIZE = 13, 6
DOUBLE = {"rtol": 1e-12, "atol": 1e-14}


@pytest.fixture(autouse=True)
def three_tokens_in_memory(monkeypatch):
    monkeypatch.setattr(losses, "MAX_LOGITS_IN_MEMORY", 3 * VOCAB_SIZE + 5)


def make_head(bias: bool = True, dtype=torch.float64, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(HIDDEN_SIZE, VOCAB_SIZE, bias=bias, dtype=dtype)


def make_rows(length: int, dtype=torch.float64, masked: float = 0.3):
    """Hidden states, targets and a teacher's hidden states of two rows."""
    targets = torch.randint(VOCAB_SIZE, (2, length)).masked_fill(torch.rand(2, length) < masked, -100)
    states, teacher_states = torch.randn(2, 2, length, HIDDEN_SIZE, dtype=dtype)
    return states.requires_grad_(), targets, teacher_states


def entropy(head, states, targets, teacher_states):
    return chunked_cross_entropy(head, states, targets, VOCAB_SIZE)


def direct_entropy(head, states, targets, teacher_states):
    return F.cross_entropy(head(states).flatten(0, 1), targets.flatten(), reduction="sum")


def make_teacher(dtype: torch.dtype) -> nn.Linear:
    """With fewer tokens than the student has."""
    torch.manual_seed(1)
    return nn.Linear(HIDDEN_SIZE, VOCAB_SIZE - 2, dtype=dtype)


def divergence(head, states, targets, teacher_states):
    return chunked_divergence(head, states, make_teacher(states.dtype), teacher_states, targets != -100, VOCAB_SIZE)


def direct_divergence(head, states, targets, teacher_states):
    p = make_teacher(states.dtype)(teacher_states).detach().softmax(-1)
    q = head(states).softmax(-1)[..., : VOCAB_SIZE - 2]
    return ((p * (p / q).log()).sum(-1) * (targets != -100)).sum()


both = pytest.mark.parametrize(
    "fused, direct", [(entropy, direct_entropy), (divergence, direct_divergence)], ids=["entropy", "divergence"]
)


def operands(head, states):
    return [tensor for tensor in (states, *head.parameters()) if tensor.requires_grad]


@both
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("length, masked", [(1, 0), (3, 0.3), (6, 0.3), (7, 0.6), (11, 0), (5, 1)])
def test_equals_direct(fused, direct, bias, length, masked):
    head, rows = make_head(bias), make_rows(length, masked=masked)
    found, expected = (loss(head, *rows) for loss in (fused, direct))
    assert type(found.grad_fn).__name__ == "LinearLossBackward"
    assert_close(found, expected, **DOUBLE)
    wanted = operands(head, rows[0])
    assert_close(torch.autograd.grad(found * 0.7, wanted), torch.autograd.grad(expected * 0.7, wanted), **DOUBLE)


@both
def test_equals_direct_in_float32(fused, direct):
    head, rows = make_head(dtype=torch.float32), make_rows(9, torch.float32)
    found, expected = (torch.autograd.grad(loss(head, *rows), operands(head, rows[0])) for loss in (fused, direct))
    assert_close(found, expected)


@both
def test_gradcheck(fused, direct):
    head, (states, targets, teacher_states) = make_head(), make_rows(4)

    def loss(states, weight, bias):
        head.weight, head.bias = weight, bias
        return fused(head, states, targets, teacher_states)

    weight, bias = head.weight.detach().requires_grad_(), head.bias.detach().requires_grad_()
    del head.weight, head.bias  # so that tensors can stand in their places
    assert torch.autograd.gradcheck(loss, (states, weight, bias))


@both
@pytest.mark.parametrize("frozen", ["states", "weight", "bias"])
def test_what_is_frozen_costs_nothing(fused, direct, frozen):
    head, rows = make_head(), make_rows(7)
    {"states": rows[0], "weight": head.weight, "bias": head.bias}[frozen].requires_grad_(False)
    with products() as counted:
        found = fused(head, *rows)
    assert len(counted.products) == 5 * {"states": 2, "weight": 2, "bias": 3}[frozen]
    wanted = operands(head, rows[0])
    assert_close(torch.autograd.grad(found, wanted), torch.autograd.grad(direct(head, *rows), wanted), **DOUBLE)


class products(TorchDispatchMode):
    """Counts products of matrices with as many tokens as the head has, and the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.products, self.largest = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            shapes = [tuple(tensor.shape) for tensor in args]
            if any(VOCAB_SIZE in shape for shape in shapes) and 1 not in shapes[0]:  # a bias takes a vector's
                self.products.append(shapes)
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@both
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradients_where_none_are_wanted(fused, direct, mode):
    head, rows = make_head(), make_rows(7)
    with mode(), products() as counted:
        found = fused(head, *rows)
    assert len(counted.products) == 5  # the logits of five chunks, and nothing else
    assert not found.requires_grad
    assert_close(found, direct(head, *rows).detach(), **DOUBLE)


@both
def test_only_a_chunk_of_logits_in_memory(fused, direct):
    head, rows = make_head(bias=False, dtype=torch.float32), make_rows(40, torch.float32)
    saved = []

    def pack(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), products() as counted:
        fused(head, *rows).backward()
    assert sorted(shape for shape in saved if HIDDEN_SIZE in shape) == [(VOCAB_SIZE, HIDDEN_SIZE), (80, HIDDEN_SIZE)]
    # The states of all tokens are larger than the logits of three.
    assert counted.largest == 80 * HIDDEN_SIZE < 80 * VOCAB_SIZE
    with products() as counted:
        direct(head, *rows)
    assert counted.largest == 80 * VOCAB_SIZE


def test_backward_twice_and_scaled():
    head, rows = make_head(), make_rows(7)
    wanted = operands(head, rows[0])
    expected = torch.autograd.grad(direct_entropy(head, *rows), wanted)
    loss = entropy(head, *rows)
    for scale in (1.0, 65536.0, 0.25):
        found = torch.autograd.grad(loss, wanted, torch.tensor(scale, dtype=loss.dtype), retain_graph=True)
        assert_close(found, tuple(gradient * scale for gradient in expected), **DOUBLE)
    loss.backward()
    entropy(head, *rows).backward()  # gradients add up
    assert_close(head.weight.grad, 2 * expected[1], **DOUBLE)


def test_the_second_derivative_is_refused():
    """A penalty on the gradient would have no effect otherwise."""
    head, rows = make_head(), make_rows(5)
    with pytest.raises(RuntimeError, match="create_graph.*once"):
        torch.autograd.grad(entropy(head, *rows), rows[0], create_graph=True)


@both
def test_autocast(fused, direct):
    head, rows = make_head(dtype=torch.float32), make_rows(40, torch.float32)
    wanted, expected = operands(head, rows[0]), direct(head, *rows)
    with torch.autocast("cpu", torch.bfloat16):
        found = fused(head, *rows)
        # Nothing that was cast without gradients stays in autocast's cache.
        assert torch.autograd.grad(head(rows[0]).sum(), head.weight)[0].abs().max() > 0
        half = fused(head, rows[0].bfloat16(), *rows[1:])  # what layers return
    assert found.dtype == half.dtype == torch.float32
    assert_close(found, expected, rtol=1e-2, atol=0)
    gradients = torch.autograd.grad(found, wanted)
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 3
    for gradient, exact in zip(gradients, torch.autograd.grad(expected, wanted), strict=True):
        assert 0 < (gradient - exact).norm() < 1e-2 * exact.norm()
    assert torch.autograd.grad(half, rows[0])[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_adds_up_in_float32(dtype):
    head, rows = make_head(dtype=dtype), make_rows(3000, dtype, masked=0)
    loss = entropy(head, *rows)
    assert loss.dtype == torch.float32
    exact_head, exact_states = copy.deepcopy(head).double(), rows[0].detach().double().requires_grad_()
    exact = direct_entropy(exact_head, exact_states, *rows[1:])
    assert_close(loss.double(), exact, rtol=1e-3, atol=0)
    found = torch.autograd.grad(loss, operands(head, rows[0]), torch.tensor(1 / 65536))
    assert [gradient.dtype for gradient in found] == [dtype] * 3
    for gradient, right in zip(found, torch.autograd.grad(exact, operands(exact_head, exact_states)), strict=True):
        assert (gradient.double() * 65536 - right).norm() < 2e-2 * right.norm()


def test_gradients_that_float16_does_not_have():
    """Of the sum of many tokens, before it is divided by their number: such a loss is not fused."""
    head = nn.Linear(8, 50, bias=False)
    states, targets = 10 * torch.randn(1, 20000, 8).abs(), torch.full((1, 20000), 3)
    with torch.autocast("cpu", torch.float16):
        assert not is_fused(head, states)
        loss = chunked_cross_entropy(head, states, targets, 50) / 20000
    assert torch.autograd.grad(loss, head.weight)[0].isfinite().all()
    assert is_fused(head, states) and not is_fused(nn.Linear(8, 50).half(), states.half())


def test_recomputation():
    head, rows = make_head(), make_rows(7)
    found = checkpoint(partial(entropy, head), *rows, use_reentrant=False)
    wanted = operands(head, rows[0])
    assert_close(torch.autograd.grad(found, wanted), torch.autograd.grad(entropy(head, *rows), wanted), **DOUBLE)


def test_the_teacher_learns_nothing():
    teacher = make_head(seed=1)
    for head in (make_head(), nn.Sequential(make_head())):
        states, targets, teacher_states = make_rows(7)
        teacher_states.requires_grad_()
        chunked_divergence(head, states, teacher, teacher_states, targets != -100, VOCAB_SIZE).backward()
        assert teacher.weight.grad is None and teacher_states.grad is None


# Other heads


class SubclassedLinear(nn.Linear):
    pass


def hooked(head):
    head.register_forward_hook(lambda module, inputs, output: output * 2)
    return head


def with_other_forward(head):
    head.forward = lambda states: F.linear(states, head.weight) * 3
    return head


def quantised(head):
    class OtherWeight(torch.Tensor):
        pass

    head.weight = nn.Parameter(head.weight.detach().as_subclass(OtherWeight))
    return head


OTHER_HEADS = {
    "hook": hooked,
    "forward": with_other_forward,
    "weight": quantised,
    "parametrised": parametrizations.weight_norm,
    "subclass": lambda head: SubclassedLinear(HIDDEN_SIZE, VOCAB_SIZE, dtype=torch.float64),
    "sequential": lambda head: nn.Sequential(head),
    "function": lambda head: lambda states: head(states),
}


@both
@pytest.mark.parametrize("make", OTHER_HEADS.values(), ids=OTHER_HEADS)
def test_other_heads_are_called(fused, direct, make):
    plain = make_head()
    assert is_plain_linear(plain)
    head, rows = make(plain), make_rows(7)
    assert not is_plain_linear(head)
    found = fused(head, *rows)
    expected = direct(head, *rows)
    assert_close(found, expected, **DOUBLE)
    assert_close(*(torch.autograd.grad(loss, rows[0])[0] for loss in (found, expected)), **DOUBLE)


# Within a model


def tiny_model(**kwargs) -> OPTAutoCompressorModel:
    torch.manual_seed(0)
    size = {"vocab_size": 60, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 32, "num_hidden_layers": 2}
    fields = size | {"num_attention_heads": 2, "max_position_embeddings": 64, "dropout": 0.0, "summary_length": 3}
    config = OPTAutoCompressorModel.config_class(**fields | kwargs)
    return OPTAutoCompressorModel(config).double().train()


@pytest.fixture
def called(monkeypatch):
    """The vocabulary sizes of the heads whose loss was fused."""
    sizes, forward = [], LinearLoss.forward

    def recorded(ctx, states, weight, *args):
        sizes.append(len(weight))
        return forward(ctx, states, weight, *args)

    monkeypatch.setattr(LinearLoss, "forward", staticmethod(recorded))
    return sizes


def gradients_of(model, **kwargs):
    model.zero_grad()
    ids = random_ids(2, 12)
    loss = model(ids, labels=ids, segment_lengths=[5, 7], output_softprompt=True, **kwargs).loss
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tie_word_embeddings", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("recomputed", [False, True], ids=["", "recomputed"])
def test_the_loss_of_a_model(tie_word_embeddings, recomputed, called):
    model = tiny_model(tie_word_embeddings=tie_word_embeddings)
    model.config.segment_gradient_checkpointing = recomputed
    model.resize_token_embeddings(67, mean_resizing=False)
    torch.manual_seed(3)
    expected = gradients_of(model)
    assert called == []  # the logits are there
    torch.manual_seed(3)
    assert_close(gradients_of(model, skip_logits=True), expected, **DOUBLE)
    assert called == [67]


def test_an_adapted_head_is_called(called):
    adapted = get_peft_model(tiny_model(), LoraConfig(target_modules=["lm_head"], r=2, init_lora_weights=False))
    torch.manual_seed(3)
    expected = gradients_of(adapted)
    torch.manual_seed(3)
    found = gradients_of(adapted, skip_logits=True)
    assert_close(found, expected, **DOUBLE)
    assert called == [] and any("lm_head.lora_A" in name for name in found[1])


def test_a_model_that_is_compiled():
    """In one graph, with the loss and gradients of the model that is not."""
    model = tiny_autocompressor("llama", torch.float64).train()  # OPT of 5.17 breaks its graph
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.manual_seed(3)
    expected = gradients_of(model, skip_logits=True, use_cache=False)
    torch.manual_seed(3)
    loss, found = gradients_of(compiled, skip_logits=True, use_cache=False)
    found = {name.removeprefix("_orig_mod."): gradient for name, gradient in found.items()}
    assert_close((loss, found), expected, **DOUBLE)
