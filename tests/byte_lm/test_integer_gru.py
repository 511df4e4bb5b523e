"""The GRU byte model in whole numbers, against the same arithmetic in int64 and against the model it was made of."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from auto_compressor import GRUByteConfig, GRUByteForCausalLM
from auto_compressor.byte_lm.integer_gru import IntegerGRU, IntegerLayer, exact_matrix
from auto_compressor.byte_lm.integer_tables import (
    LIMIT,
    LOGIT_BITS,
    SIGMOID_BITS,
    STATE_BITS,
    TANH_BITS,
    sigmoid_table,
    tanh_table,
    weight_table,
)
from auto_compressor.files.bundled import BUNDLED_VALIDATION_TEXT


TEXT = BUNDLED_VALIDATION_TEXT.read_bytes()


def gru(hidden_size: int = 24, num_blocks: int = 2, scale: float = 2.0) -> GRUByteForCausalLM:
    """A model of random weights that predicts boldly."""
    torch.manual_seed(0)
    config = GRUByteConfig(hidden_size=hidden_size, num_blocks=num_blocks, num_padding_parameters=0)
    model = GRUByteForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    return model


def text_rows(num_rows: int, num_steps: int) -> torch.Tensor:
    return torch.tensor(list(TEXT[: num_rows * num_steps])).view(num_rows, num_steps)


# The same in int64


def whole(values: torch.Tensor, bits: int) -> np.ndarray:
    """Values times 2**bits, which must be whole, as int64."""
    scaled = values.double() * 2.0**bits
    assert torch.equal(scaled, scaled.round())
    return scaled.long().numpy()


BITS = 24  # below the point, of all weights here


def floor_places(values: np.ndarray) -> np.ndarray:
    return np.clip(values >> BITS, 0, 2 * LIMIT - 1)


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """values / 2**bits, halves to the even number."""
    floor, rest = values >> bits, values & ((1 << bits) - 1)
    half = 1 << (bits - 1)
    return floor + ((rest > half) | ((rest == half) & (floor % 2 == 1)))


def step_in_int64(layer: IntegerLayer, symbols: np.ndarray, inputs: np.ndarray, state: np.ndarray) -> np.ndarray:
    """The state `(rows, size)` after one step."""
    size = state.shape[1]
    given = whole(layer.given, 0)[symbols if len(layer.given) > 1 else np.zeros_like(symbols)]
    if layer.weight_ih is not None:
        given = rounded((given << BITS) + inputs @ whole(layer.weight_ih, BITS), BITS)
    given = np.clip(given, 0, 2 * LIMIT)
    places = floor_places((given[:, : 2 * size] << BITS) + state @ whole(layer.weight_rz, BITS))
    r, z = np.split(whole(sigmoid_table(), STATE_BITS)[places], 2, axis=1)
    m = (whole(layer.bias_m, 0) << BITS) + state @ whole(layer.weight_m, BITS)
    m = np.clip(rounded(m, BITS), -LIMIT, LIMIT)
    n = whole(tanh_table(), 0)[np.clip(given[:, 2 * size :] + ((r * m) >> STATE_BITS), 0, 2 * LIMIT - 1)]
    return rounded((n << STATE_BITS) + z * (state - n), STATE_BITS)


def read_in_int64(model: IntegerGRU, symbols: np.ndarray) -> np.ndarray:
    """Weights `(steps, rows, 256)` of bytes `(rows, steps)`."""
    states = [np.zeros((len(symbols), model.size), np.int64) for _ in model.layers for _ in range(2)]
    found = []
    for column in symbols.T:
        below = np.zeros((len(symbols), model.size), np.int64)
        for index, (first, second) in enumerate(model.layers):
            states[2 * index] = step_in_int64(first, column, below, states[2 * index])
            states[2 * index + 1] = step_in_int64(second, column, states[2 * index], states[2 * index + 1])
            below = below + states[2 * index + 1]
        logits = rounded((whole(model.logits, 0)[column] << BITS) + below @ whole(model.head, BITS), BITS)
        places = np.minimum(logits.max(axis=1, keepdims=True) - logits, len(weight_table()) - 1)
        found.append(whole(weight_table(), 0)[places])
    return np.stack(found)


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_it_is_the_same_arithmetic_in_int64(num_blocks):
    model = IntegerGRU(gru(num_blocks=num_blocks))
    symbols = text_rows(3, 40)
    weights = model.reader(3).read(symbols)
    np.testing.assert_array_equal(weights.astype(np.int64), read_in_int64(model, symbols.numpy()))


def test_pieces_rows_and_threads_change_nothing():
    model = IntegerGRU(gru(hidden_size=96))
    symbols = text_rows(48, 30)
    weights = model.reader(48).read(symbols)  # (steps, rows, 256)
    reader = model.reader(48)
    steps = np.concatenate([reader.read(symbols[:, step : step + 1]) for step in range(30)])
    np.testing.assert_array_equal(steps, weights)
    alone = np.concatenate([model.reader(1).read(row[None]) for row in symbols], axis=1)
    np.testing.assert_array_equal(alone, weights)
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        np.testing.assert_array_equal(model.reader(48).read(symbols), weights)
    finally:
        torch.set_num_threads(threads)


def test_it_predicts_what_its_model_predicts():
    model = gru(hidden_size=64, num_blocks=1, scale=1.5)
    symbols = text_rows(16, 128)
    with torch.no_grad():
        expected = model(symbols).logits[..., :256].double().softmax(dim=-1).transpose(0, 1)
    weights = torch.from_numpy(IntegerGRU(model).reader(16).read(symbols)).double()
    found = weights / weights.sum(dim=-1, keepdim=True)
    divergence = (expected * (expected / found).log2()).sum(dim=-1).mean()  # bits that a byte costs more
    assert divergence < 2e-3


def test_the_float_model_is_left_as_it_is():
    model = gru()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    IntegerGRU(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Exact products


def test_a_matrix_keeps_its_sums_exact():
    torch.manual_seed(0)
    matrix = torch.randn(64, 256)
    weights = exact_matrix(matrix, SIGMOID_BITS, 2**STATE_BITS, 2 * LIMIT)  # (columns, rows)
    worst = 2**STATE_BITS * weights.T.sign()  # the row of inputs with the largest sum, for each row of the matrix
    sums = [
        sum(Fraction(float(w)) * int(x) for w, x in zip(weights[:, row], worst[row], strict=True)) for row in range(64)
    ]
    assert [Fraction(float(found)) for found in (worst @ weights).diagonal()] == sums
    scale = 2.0 ** (SIGMOID_BITS - STATE_BITS)
    torch.testing.assert_close(weights.T / scale, matrix, rtol=0, atol=float(matrix.abs().max()) / 64)


def test_a_matrix_whose_sums_might_be_rounded_is_refused():
    with pytest.raises(
        ValueError, match=r"`model` must have weights whose sums .* stay below 2\*\*24, the largest may"
    ):
        exact_matrix(torch.ones(4, 4096), TANH_BITS, 2**STATE_BITS, 2 * LIMIT)


def test_products_of_fewer_bits_are_refused(monkeypatch):
    class Coarse(torch.Tensor):
        def __matmul__(self, other):
            return super().__matmul__(other).bfloat16().float()

    full = torch.full
    monkeypatch.setattr(torch, "full", lambda *args, **kwargs: full(*args, **kwargs).as_subclass(Coarse))
    with pytest.raises(ValueError, match="products of float32 must be exact"):
        IntegerGRU(gru())


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="`model` must be a GRUByteForCausalLM, got Linear"):
        IntegerGRU(torch.nn.Linear(2, 2))


# Tables


def test_tables_hold_the_functions():
    steps = torch.arange(-LIMIT, LIMIT) + 0.5
    torch.testing.assert_close(
        sigmoid_table().double(), (steps.double() / 2**SIGMOID_BITS).sigmoid(), rtol=0, atol=0.51 / 2**STATE_BITS
    )
    tanh = (steps.double() / 2**TANH_BITS).tanh()
    torch.testing.assert_close(tanh_table().double() / 2**STATE_BITS, tanh, rtol=0, atol=0.51 / 2**STATE_BITS)
    assert weight_table()[0] == 2**16 and weight_table()[-1] == 1
    assert weight_table()[2**LOGIT_BITS] == round(2**16 / math.e)
