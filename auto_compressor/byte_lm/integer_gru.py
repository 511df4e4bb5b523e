"""A GRU byte model in whole numbers: it predicts the same, to the last bit, on every machine.

The weights of a trained [`GRUByteForCausalLM`] are rounded to 8 bits and a power of two for each row; states, gates
and logits are multiples of powers of two. All of them are held in float32, for its speed, and it never rounds any:

- A product of a matrix with whole numbers is exact in any order of its sum, on any number of threads, as long as no
  partial sum needs more than the 24 bits of float32: [`exact_matrix`] bounds it by the L1 norm of the row and the
  largest input, and refuses what is beyond. A power of two changes nothing of that.
- Sums and products of single numbers are small enough to be exact too, with or without fused multiply-add.
- Sigmoid, tanh and exp are read from tables that were made in decimal arithmetic, see `integer_tables`.

So what is computed for one byte at a time, as a decoder must, equals what is computed for many at once, as an encoder
can: here the inputs of a layer, and the predictions, of all steps are one product each.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from ..tokenization_bytes import NUM_BYTES
from .integer_tables import (
    LIMIT,
    LOGIT_BITS,
    SIGMOID_BITS,
    STATE_BITS,
    TANH_BITS,
    sigmoid_table,
    tanh_table,
    weight_table,
)
from .modeling_gru_byte import GRUByteForCausalLM


ROW_BITS = 7  # and the sign: what a weight is rounded to, relative to the largest of its row
EXACT = 2**24  # float32 holds every whole number up to here
MAX_LOST_BITS = 3  # of the 8 bits of a row, to keep sums exact
FINE_BITS = 18  # of embeddings and weights whose products are made once, in float64, which is exact up to 2**53
UNIT = 2**STATE_BITS  # a state of 1


def exact_matrix(matrix: torch.Tensor, step_bits: int, largest: int, beside: int) -> torch.Tensor:
    """
    Weights for products with whole numbers that are exact in float32.

    Args:
        matrix (`torch.Tensor` of shape `(rows, columns)`): Weights.
        step_bits (`int`): The products are in steps of 2**-step_bits; the inputs are multiples of 2**-STATE_BITS.
        largest (`int`): What no input exceeds, in units of 2**-STATE_BITS.
        beside (`int`): What the numbers that are added to a product do not exceed, in steps.

    Returns:
        `torch.Tensor` of shape `(columns, rows)`: Whole numbers of 8 bits, times a power of two for each column.

    Raises:
        ValueError: where a row has so large a norm that its sum might need more bits than float32 has.
    """
    scaled = matrix.double() * 2.0 ** (step_bits - STATE_BITS)
    # What brings the largest number of a row to 64 or more, and 128 at most; less where sums would be too large.
    exponents = ROW_BITS - torch.frexp(scaled.abs().amax(dim=1, keepdim=True)).exponent  # (rows, 1)
    sums = largest_sums(scaled, exponents, largest, beside)
    for _ in range(MAX_LOST_BITS):
        if sums.max() < EXACT:
            break
        exponents -= (sums >= EXACT).int()
        sums = largest_sums(scaled, exponents, largest, beside)
    found = float(sums.max())
    if found >= EXACT:
        raise ValueError(
            f"`model` must have weights whose sums of whole numbers stay below 2**24, the largest may be {found:.0f}:"
            " its layers are too wide, or a row of a weight is too large."
        )
    return torch.ldexp(torch.ldexp(scaled, exponents).round(), -exponents).float().T.contiguous()


def largest_sums(scaled: torch.Tensor, exponents: torch.Tensor, largest: int, beside: int) -> torch.Tensor:
    """Bounds `(rows, 1)` of all partial sums of rows with inputs, in the units 2**-exponent of the rounded rows."""
    norms = torch.ldexp(scaled, exponents).round().abs().sum(dim=1, keepdim=True)
    return norms * largest + torch.ldexp(torch.full_like(norms, beside), exponents)


def exact_table(embeddings: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor, step_bits: int) -> torch.Tensor:
    """Products of embeddings `(bytes, columns)` with weights `(rows, columns)`, `(bytes, rows)` in whole steps."""
    fine = [torch.ldexp(part.double(), torch.tensor(FINE_BITS)).round() for part in (embeddings, matrix)]
    if (fine[0].abs() @ fine[1].abs().T).max() >= 2**52:
        raise ValueError("`model` must have embeddings and weights whose sums of whole numbers stay below 2**52.")
    steps = torch.ldexp(fine[0] @ fine[1].T, torch.tensor(step_bits - 2 * FINE_BITS))
    return (steps.round() + whole_steps(bias, step_bits)).float()


def whole_steps(bias: torch.Tensor, step_bits: int) -> torch.Tensor:
    return torch.ldexp(bias.double(), torch.tensor(step_bits)).round().float()


def look_up(table: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """The entries of a table at the integer parts of float32 places, the first and the last for those outside; the
    places are clamped to them."""
    whole = places.clamp_(0, len(table) - 1).int()
    return table.index_select(0, whole.flatten()).view_as(places)


@dataclass(frozen=True)
class IntegerLayer:
    """
    One GRU layer.

    What depends on no state, the *given* part of r, z and n, is made for many steps at once, with `LIMIT` added: then
    the integer part of a gate is the place of its value in a table.

    Args:
        weight_ih (`torch.Tensor` of shape `(size, 3 * size)`, *optional*): For inputs that are whole numbers.
        given (`torch.Tensor` of shape `(256 or 1, 3 * size)`): What is added to their products, for each byte or for
            all.
        weight_rz, weight_m (`torch.Tensor` of shape `(size, 2 * size)` and `(size, size)`): For states.
        bias_m (`torch.Tensor` of shape `(size,)`): Added to the products of `weight_m`.
    """

    weight_ih: torch.Tensor | None
    given: torch.Tensor
    weight_rz: torch.Tensor
    weight_m: torch.Tensor
    bias_m: torch.Tensor

    def read_inputs(self, symbols: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """The given parts `(steps, rows, 3 * size)`, of bytes `(steps, rows)` and states below `(.., .., size)`."""
        given = self.given.index_select(0, symbols.flatten()) if len(self.given) > 1 else self.given
        if self.weight_ih is not None:
            given = torch.addmm(given, inputs.flatten(0, 1), self.weight_ih).round_()  # (steps * rows, 3 * size)
        return given.clamp_(0, 2 * LIMIT).view(*symbols.shape, -1)

    def run(self, given: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """States `(steps, rows, size)` after each step, from the given parts and the state `(rows, size)` before."""
        size = state.shape[1]
        states = torch.empty(*given.shape[:2], size)
        for before_rz, before_n, after in zip(*given.split([2 * size, size], dim=2), states, strict=True):
            self.step(before_rz, before_n, state, after)
            state = after
        return states

    def step(self, given_rz: torch.Tensor, given_n: torch.Tensor, state: torch.Tensor, after: torch.Tensor):
        """Writes the state `(rows, size)` after a step whose given parts are `(rows, 2 * size)` and `(rows, size)`."""
        r, z = look_up(sigmoid_table(), torch.addmm(given_rz, state, self.weight_rz)).chunk(2, dim=1)
        m = torch.addmm(self.bias_m, state, self.weight_m).round_().clamp_(-LIMIT, LIMIT)
        n = look_up(tanh_table(), torch.addcmul(given_n, m, r))
        torch.addcmul(n, state - n, z, out=after).round_()


def convert_layer(layer: torch.nn.GRU, embeddings: torch.Tensor | None, num_below: int) -> IntegerLayer:
    """
    Args:
        layer (`nn.GRU`): With as many inputs as outputs.
        embeddings (`torch.Tensor` of shape `(256, size)`, *optional*): What bytes add to the inputs of the layer.
        num_below (`int`): How many outputs of GRU layers, each in [-1, 1], the inputs sum up beside that.
    """
    size = layer.hidden_size
    weight_ih, weight_hh, bias_ih, bias_hh = layer.parameters()
    bias = bias_ih + F.pad(bias_hh[: 2 * size], (0, size))
    parts = [(slice(0, 2 * size), SIGMOID_BITS), (slice(2 * size, None), TANH_BITS)]  # of r and z, of n
    rows = embeddings if embeddings is not None else torch.zeros(1, size)
    given = torch.cat([exact_table(rows, weight_ih[at], bias[at], bits) for at, bits in parts], dim=1)
    weight_rz, weight_m = (exact_matrix(weight_hh[at], bits, UNIT, 2 * LIMIT) for at, bits in parts)
    below = None
    if num_below:
        beside = int(given.abs().max()) + LIMIT
        matrices = [exact_matrix(weight_ih[at], bits, num_below * UNIT, beside) for at, bits in parts]
        below = torch.cat(matrices, dim=1)
    bias_m = whole_steps(bias_hh[2 * size :], TANH_BITS)
    return IntegerLayer(below, given + LIMIT, weight_rz, weight_m, bias_m)


def check_float32():
    """Raises a `ValueError` where products of float32 are made of fewer bits, as PyTorch can be told to."""
    odd = torch.full((64, 16), float(UNIT - 1))
    if (odd @ odd.T != 16 * (UNIT - 1) ** 2).any():
        raise ValueError(
            "products of float32 must be exact, this process makes them of fewer bits:"
            ' torch.set_float32_matmul_precision("highest").'
        )


class IntegerGRU:
    """
    A GRU byte model in whole numbers, on the CPU.

    Args:
        model (`GRUByteForCausalLM`): A trained one; it is left as it is.

    Raises:
        ValueError: for a model of another family, or one whose sums of whole numbers might not be exact.
    """

    def __init__(self, model: GRUByteForCausalLM):
        if not isinstance(model, GRUByteForCausalLM):
            raise ValueError(f"`model` must be a GRUByteForCausalLM, got {type(model).__name__}.")
        check_float32()
        with torch.no_grad():
            self.convert(model)

    def convert(self, model: GRUByteForCausalLM):
        embeddings = model.embed_tokens.weight[:NUM_BYTES].cpu()
        self.size = model.config.hidden_size
        layers = [layer for layer in model.blocks.modules() if isinstance(layer, torch.nn.GRU)]
        self.layers = [
            (convert_layer(first, embeddings, index), convert_layer(second, None, 1))
            for index, (first, second) in enumerate(zip(layers[::2], layers[1::2], strict=True))
        ]
        head, bias = model.lm_head.weight[:NUM_BYTES], model.lm_head.bias[:NUM_BYTES]
        self.logits = exact_table(embeddings, head, bias, LOGIT_BITS)  # (256, 256)
        beside = int(self.logits.abs().max())
        self.head = exact_matrix(head, LOGIT_BITS, len(self.layers) * UNIT, beside)

    def weights(self, symbols: torch.Tensor, below: torch.Tensor) -> np.ndarray:
        """Weights `(steps, rows, 256)` of the bytes behind bytes `(steps, rows)`, from the sum of all blocks."""
        given = self.logits.index_select(0, symbols.flatten())
        logits = torch.addmm(given, below.flatten(0, 1), self.head).round_()  # (steps * rows, 256)
        weights = look_up(weight_table(), logits.amax(dim=1, keepdim=True) - logits)
        return weights.view(*symbols.shape, -1).numpy()

    def reader(self, num_rows: int) -> "IntegerReader":
        """What reads `num_rows` streams side by side, each from its beginning."""
        return IntegerReader(self, num_rows)


class IntegerReader:
    """
    Reads streams of bytes side by side, any number of bytes at a time.

    Args:
        model (`IntegerGRU`): What predicts.
        num_rows (`int`): Streams.
    """

    def __init__(self, model: IntegerGRU, num_rows: int):
        self.model = model
        self.states = [torch.zeros(num_rows, model.size) for _ in range(2 * len(model.layers))]

    @torch.inference_mode()
    def read(self, symbols: torch.Tensor) -> np.ndarray:
        """
        Reads bytes `(num_rows, steps)`.

        Returns:
            `np.ndarray` of shape `(steps, num_rows, 256)`: What weight each byte has to be the next one, whole
            numbers from 1 to 2**16 in float64.
        """
        symbols = symbols.T.int().contiguous()  # (steps, rows)
        below = torch.zeros(())  # the sum of all blocks so far
        for index, layers in enumerate(self.model.layers):
            outputs = below
            for place, layer in enumerate(layers, 2 * index):
                outputs = layer.run(layer.read_inputs(symbols, outputs), self.states[place])
                self.states[place] = outputs[-1]
            below = below + outputs  # (steps, rows, size)
        return self.model.weights(symbols, below)


__all__ = ["IntegerGRU", "IntegerLayer", "IntegerReader", "exact_matrix"]
