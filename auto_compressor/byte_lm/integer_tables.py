"""Sigmoid, tanh and exp as tables of integers, which are the same on every machine.

They are made in decimal arithmetic, whose exp is rounded correctly whatever the processor and the libraries are, so no
program that reads them calls a transcendental function. Nothing is interpolated: a table has one entry for each step
of its argument, the value in the middle of the step.
"""

from collections.abc import Callable
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from functools import cache

import torch


STATE_BITS = 10  # states and gates are multiples of 2**-10
SIGMOID_BITS, TANH_BITS, LOGIT_BITS = 8, 9, 6  # steps of 2**-8, 2**-9 and 2**-6 of the arguments
LIMIT = 2**12  # steps on each side of 0: 16 for sigmoid and 8 for tanh, where both are flat
WEIGHT_BITS = 16  # the most likely byte weighs 2**16, and 256 bytes below 2**24 + 1, which float32 holds
NUM_WEIGHTS = 1024  # 16 nats below the most likely byte, a weight is 1


def rounded(values: list[Decimal], bits: int) -> torch.Tensor:
    """Values times 2**bits as whole numbers `(len(values),)`, in float32."""
    with localcontext(prec=40):
        whole = [int((value * 2**bits).to_integral_value(ROUND_HALF_EVEN)) for value in values]
    return torch.tensor(whole, dtype=torch.float32)


def odd_table(function: Callable[[Decimal], Decimal], bits: int) -> torch.Tensor:
    """An odd function in the middle of `2 * LIMIT` steps of 2**-bits, times 2**STATE_BITS."""
    with localcontext(prec=40):
        half = [function(Decimal(2 * step + 1) / 2 ** (bits + 1)) for step in range(LIMIT)]
    positive = rounded(half, STATE_BITS)
    return torch.cat([-positive.flip(0), positive])


def tanh(value: Decimal) -> Decimal:
    likeness = (-2 * value).exp()
    return (1 - likeness) / (1 + likeness)


@cache
def tanh_table() -> torch.Tensor:
    """tanh of -8 to 8, `(2 * LIMIT,)`: whole numbers, which stand for multiples of 2**-STATE_BITS."""
    return odd_table(tanh, TANH_BITS)


@cache
def sigmoid_table() -> torch.Tensor:
    """The sigmoid of -16 to 16, `(2 * LIMIT,)`: multiples of 2**-STATE_BITS."""
    with localcontext(prec=40):
        half = [1 / (1 + (-Decimal(2 * step + 1) / 2 ** (SIGMOID_BITS + 1)).exp()) for step in range(LIMIT)]
    positive = rounded(half, STATE_BITS)
    return torch.cat([2**STATE_BITS - positive.flip(0), positive]) / 2**STATE_BITS


@cache
def weight_table() -> torch.Tensor:
    """exp of 0 to -16 in steps of 2**-LOGIT_BITS, `(NUM_WEIGHTS,)`: whole numbers from 2**WEIGHT_BITS down to 1, in
    float64, as the range coder takes them."""
    with localcontext(prec=40):
        values = [(-Decimal(step) / 2**LOGIT_BITS).exp() for step in range(NUM_WEIGHTS)]
    return rounded(values, WEIGHT_BITS).clamp(min=1).double()


__all__ = [
    "LIMIT",
    "LOGIT_BITS",
    "NUM_WEIGHTS",
    "SIGMOID_BITS",
    "STATE_BITS",
    "TANH_BITS",
    "WEIGHT_BITS",
    "sigmoid_table",
    "tanh_table",
    "weight_table",
]
