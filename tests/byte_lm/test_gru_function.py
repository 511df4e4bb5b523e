"""GRU layers by one autograd function: states and gradients are those of `nn.GRU`, which stays where it is faster."""

import itertools

import pytest
import torch
from modeling_testing import DOUBLE, gradients, pad_rows, random_ids
from test_adaptive_byte import every_model, tiny_model
from torch import nn
from torch.nn.utils import prune
from torch.testing import assert_close

from auto_compressor import AdaptiveByteConfig, AdaptiveByteForCausalLM
from auto_compressor.byte_lm import gru_block
from auto_compressor.byte_lm.gru_block import GRUBlock, is_trained_on_cpu, run_layer
from auto_compressor.byte_lm.gru_function import GRUFunction


PARITY = {"rtol": 1e-12, "atol": 1e-12}
PARAMETERS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
NAMES = ("inputs", "before", *PARAMETERS)


def layer_and_inputs(batch=3, length=7, size=5, dtype=torch.float64):
    """A layer, inputs `(batch, length, size)` and a state before them `(batch, size)`."""
    generator = torch.Generator().manual_seed(0)
    layer = nn.GRU(size, size, batch_first=True).to(dtype)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype) * size**-0.5
    inputs = torch.randn(batch, length, size, generator=generator).to(dtype).requires_grad_()
    before = torch.randn(batch, size, generator=generator).to(dtype).requires_grad_()
    return layer, inputs, before


def tensors_of_layer(layer, inputs, before) -> dict[str, torch.Tensor]:
    return {"inputs": inputs, "before": before} | {name: getattr(layer, name) for name in PARAMETERS}


def outputs_and_gradients(layer, inputs, before) -> dict[str, torch.Tensor]:
    outputs = run_layer(layer, inputs, before)
    wanted = {name: t for name, t in tensors_of_layer(layer, inputs, before).items() if t.requires_grad}
    weights = torch.linspace(-1, 2, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    found = torch.autograd.grad((outputs * weights).sum(), list(wanted.values()))
    return {"outputs": outputs.detach()} | dict(zip(wanted, found, strict=True))


@pytest.fixture
def plainly(monkeypatch):
    """Calls a function with `nn.GRU` in place of the autograd function."""

    def call(function, *args):
        with monkeypatch.context() as patch:
            patch.setattr(gru_block, "is_trained_on_cpu", lambda *tensors: False)
            return function(*args)

    return call


@pytest.fixture
def runs(monkeypatch):
    """The shape of the inputs at every call of the autograd function."""
    found, apply = [], GRUFunction.apply
    monkeypatch.setattr(GRUFunction, "apply", lambda *args: found.append(tuple(args[0].shape)) or apply(*args))
    return found


@pytest.mark.parametrize("batch, length", [(1, 2), (1, 40), (3, 7), (64, 3)])
def test_float64_parity(batch, length, plainly, runs):
    given = layer_and_inputs(batch, length)
    found = outputs_and_gradients(*given)
    assert set(found) == {"outputs", *NAMES} and runs == [(length, batch, 5)]
    assert_close(found, plainly(outputs_and_gradients, *given), **PARITY)
    assert len(runs) == 1


def test_float32_parity(plainly):
    given = layer_and_inputs(8, 128, 64, torch.float32)
    found, expected = outputs_and_gradients(*given), plainly(outputs_and_gradients, *given)
    for name, tensor in expected.items():
        assert (found[name] - tensor).norm() <= 6e-7 * tensor.norm(), name


def test_gradcheck():
    layer, inputs, before = layer_and_inputs(2, 3, 4)
    tensors = [tensor.detach().requires_grad_() for tensor in tensors_of_layer(layer, inputs, before).values()]
    tensors[0] = tensors[0].detach().transpose(0, 1).requires_grad_()  # (length, batch, size)
    assert torch.autograd.gradcheck(GRUFunction.apply, tensors)


@pytest.mark.parametrize("frozen", [names for n in (1, 5) for names in itertools.combinations(NAMES, n)], ids="-".join)
def test_frozen_parts(frozen, plainly, runs):
    given = layer_and_inputs()
    for name, tensor in tensors_of_layer(*given).items():
        tensor.requires_grad_(name not in frozen)
    found = outputs_and_gradients(*given)
    assert len(runs) == 1 and not set(found) & set(frozen)
    assert_close(found, plainly(outputs_and_gradients, *given), **PARITY)


def test_backward_twice():
    layer, inputs, before = layer_and_inputs()
    loss = run_layer(layer, inputs, before).square().sum()
    first, second = (torch.autograd.grad(loss, [inputs, *layer.parameters()], retain_graph=True) for _ in range(2))
    assert_close(first, second, rtol=0, atol=0)


def test_gradients_of_gradients_are_refused():
    layer, inputs, before = layer_and_inputs()
    loss = run_layer(layer, inputs, before).square().sum()
    (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_what_a_state_carries_has_a_gradient(plainly):
    """Through both layers, from the state behind each row's own length to that before the first position."""
    block = GRUBlock(5).double()
    inputs, state = torch.randn(3, 6, 5).double(), torch.randn(3, 2, 5).double().requires_grad_()

    def run():
        outputs, after = block(inputs, state, torch.tensor([0, 2, 6]))
        return torch.autograd.grad(outputs[:, 3].sum() + after.square().sum(), [state, *block.parameters()])

    assert_close(run(), plainly(run), **PARITY)


@every_model
def test_gradients_of_models(name, plainly, runs):
    """With padding, and with a state from earlier bytes."""
    model = tiny_model(name).train()
    ids, mask = pad_rows([random_ids(1, 20), random_ids(1, 13, seed=1)], "left")

    def run():
        cache = model(random_ids(2, 8, seed=2), use_cache=True).cache
        return gradients(model, model(ids, attention_mask=mask, labels=ids, cache=cache).loss)

    found = run()
    assert len(runs) >= 4
    assert_close(found, plainly(run), **DOUBLE)


def test_training_is_the_same(plainly):
    ids = random_ids(4, 32)

    def losses():
        torch.manual_seed(0)
        model, found = AdaptiveByteForCausalLM(AdaptiveByteConfig(hidden_size=16)).double(), []
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(10):
            loss = model(ids, labels=ids).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.detach())
        return torch.stack(found)

    found = losses()
    assert found[-1] < found[0]
    assert_close(found, plainly(losses), rtol=1e-12, atol=0)


def wanting(**changes) -> tuple[torch.Tensor, ...]:
    return tuple(torch.zeros(2, **{"requires_grad": True} | changes) for _ in range(2))


def test_only_training_on_a_cpu_is_by_the_function():
    assert is_trained_on_cpu(*wanting()) and is_trained_on_cpu(*wanting(dtype=torch.float64))
    assert is_trained_on_cpu(torch.zeros(2), *wanting())
    # A device that is no CPU, other dtypes, or two of them
    assert not is_trained_on_cpu(*wanting(device="meta"))
    assert not is_trained_on_cpu(wanting()[0], wanting(device="meta")[0])
    assert not is_trained_on_cpu(*wanting(dtype=torch.bfloat16))
    assert not is_trained_on_cpu(wanting()[0], wanting(dtype=torch.float64)[0])
    # No gradients
    assert not is_trained_on_cpu(*wanting(requires_grad=False))
    with torch.no_grad():
        assert not is_trained_on_cpu(*wanting())
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_trained_on_cpu(*wanting())


def test_elsewhere_it_is_nn_gru(runs):
    """No gradients, a single step, bfloat16, and autocast, all of which work as before."""
    layer, inputs, before = layer_and_inputs(dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(run_layer(layer, inputs, before), layer(inputs, before[None])[0])
    run_layer(layer, inputs[:, :1], before).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        run_layer(layer, inputs, before).sum().backward()
    half = layer_and_inputs(dtype=torch.bfloat16)
    run_layer(*half).sum().backward()
    assert half[0].weight_hh_l0.grad.dtype == torch.bfloat16 and runs == []


@pytest.mark.parametrize("how", ["compile", "func"])
def test_transforms_of_torch(how, runs):
    """`torch.compile` and `torch.func` take the layer as before, with equal gradients."""
    layer, inputs, before = layer_and_inputs()
    expected = outputs_and_gradients(layer, inputs, before)["inputs"]
    weights = torch.linspace(-1, 2, inputs.numel(), dtype=inputs.dtype).view_as(inputs)
    run = torch.compile(run_layer, backend="eager") if how == "compile" else run_layer

    def loss(inputs):
        return (run(layer, inputs, before) * weights).sum()

    found = torch.func.grad(loss)(inputs) if how == "func" else torch.autograd.grad(loss(inputs), inputs)[0]
    assert_close(found, expected, **PARITY)
    assert len(runs) == 1


def test_a_layer_with_hooks_is_called():
    """Pruning makes the weights anew before every call."""
    block = GRUBlock(6).double()
    prune.l1_unstructured(block.layers[0], "weight_hh_l0", amount=0.5)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.5)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = block(torch.ones(2, 5, 6).double())[0].pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[1] < losses[0] and (block.layers[0].weight_hh_l0 == 0).sum() == 54
