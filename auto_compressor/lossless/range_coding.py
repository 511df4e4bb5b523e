"""Symbols to words and back by a range coder, under distributions that both sides round alike.

A symbol is coded as the block of 256 that it lies in, if there are several, and its place in the block: two digits,
each under a distribution of its own. Probabilities are rounded to multiples of 2**-18, which are the same on both
sides unless one lies on the border between two. The encoder sees this coming: where a probability is closer to such a
border than a relative 1e-11, the digit is coded as one of equally likely ones, and the file says so. The chance of it
is in proportion to the probability, so it does not depend on the size of the vocabulary: 5 digits in a million.
"""

from abc import ABC, abstractmethod

import constriction
import numpy as np
import torch

from ..files.coded_file import NUM_CODES, OTHER_ROUNDING, SPARE_BITS, CodedFileError
from .vocabulary import BLOCK


NUM_COUNTS = 2**18  # a distribution is rounded to so many parts
TIE_MARGIN = 1e-11
WORD_BITS = 32
LEAST_PROBABILITY = 2.0**-24  # that a symbol is counted with: one that a model excludes has a code of 24 bits too
OTHER_BYTES = f"decodes to other bytes than its original: {OTHER_ROUNDING}."
# A code of 24 bits is kept for every digit, however unlikely; floats that sum to anything are taken as they are.
CODED_BY = constriction.stream.model.Categorical(perfect=False)


def find_ties(probs: torch.Tensor) -> list[int]:
    """The rows of `(rows, digits)` where another machine might round one of the probabilities to another count."""
    parts = probs * NUM_COUNTS
    return ((parts.frac() - 0.5).abs() < TIE_MARGIN * parts).any(dim=1).nonzero()[:, 0].tolist()


def round_to_counts(probs: torch.Tensor, ties: list[int]) -> np.ndarray:
    """
    What rows of digits are coded by: whole numbers in the ratio of their probabilities, in `ties` all the same.

    The rows lie one behind the other in memory, which constriction takes for granted.
    """
    counts = (probs * NUM_COUNTS + 0.5).floor()
    counts[ties] = 1.0
    return np.ascontiguousarray(counts.numpy())


def least_bits(counts: np.ndarray, digits: np.ndarray) -> float:
    """What rows of digits cost at least, coded by their counts."""
    likely = np.take_along_axis(counts, digits[:, None].astype(np.int64), 1)[:, 0] / counts.sum(axis=1)
    codes = likely * (NUM_CODES - counts.shape[1]) + 2  # its own, and one that rounding may add
    return float(-np.log2(codes / NUM_CODES).sum())


class Coder(ABC):
    """
    What encoding and decoding share: both call `code` with the same distributions, in the same order.

    Attributes:
        bits (`float`): Sum of -log2 p over all symbols so far.
        num_digits (`int`): Digits so far, by which ties are counted.
    """

    def __init__(self):
        self.bits, self.num_digits = 0.0, 0

    def code(self, probs: torch.Tensor, symbols: torch.Tensor) -> torch.Tensor:
        """Codes symbols `(rows,)` by distributions `(rows, size)`; a decoder takes no notice of them, and returns its
        own."""
        blocks = torch.zeros(len(probs), dtype=torch.long)
        shares = probs.unflatten(1, (-1, BLOCK))  # (rows, blocks, 256)
        if shares.shape[1] > 1:
            blocks = self.code_digits(shares.sum(dim=2), symbols // BLOCK)
        within = shares[torch.arange(len(probs)), blocks]  # (rows, 256)
        if shares.shape[1] > 1:
            # A decoder that has gone astray may meet a block without probability.
            within = (within / within.sum(dim=1, keepdim=True)).nan_to_num(nan=1 / BLOCK)
        places = self.code_digits(within, symbols % BLOCK)
        symbols = blocks * BLOCK + places
        self.bits -= float(probs.gather(1, symbols[:, None]).clamp(min=LEAST_PROBABILITY).log2().sum())
        return symbols

    @abstractmethod
    def code_digits(self, probs: torch.Tensor, digits: torch.Tensor) -> torch.Tensor:
        """Codes digits `(rows,)` by distributions `(rows, digits)`."""


class Encoder(Coder):
    """
    Symbols to words.

    Attributes:
        ties (`list[int]`): The digits that were coded as equally likely ones.
    """

    def __init__(self):
        super().__init__()
        self.coder, self.ties = constriction.stream.queue.RangeEncoder(), []

    def code_digits(self, probs: torch.Tensor, digits: torch.Tensor) -> torch.Tensor:
        tied = find_ties(probs)
        self.encode(digits.int().numpy(), round_to_counts(probs, tied))
        self.ties += [self.num_digits + row for row in tied]
        self.num_digits += len(digits)
        return digits

    def encode(self, digits: np.ndarray, counts: np.ndarray):
        """Codes int32 digits `(rows,)` by whole numbers in float64, `(rows, digits)`."""
        self.coder.encode(digits, CODED_BY, counts)

    @property
    def words(self) -> np.ndarray:
        return self.coder.get_compressed()


class Decoder(Coder):
    """
    Words to symbols.

    Args:
        words (`np.ndarray` of shape `(num_words,)`), ties (`np.ndarray` of shape `(num_ties,)`): Those of the encoder.
    """

    def __init__(self, words: np.ndarray, ties: np.ndarray):
        super().__init__()
        self.coder, self.ties = constriction.stream.queue.RangeDecoder(words), ties
        self.left = float(WORD_BITS * len(words) + SPARE_BITS)

    def code_digits(self, probs: torch.Tensor, digits: torch.Tensor) -> torch.Tensor:
        first, end = np.searchsorted(self.ties, [self.num_digits, self.num_digits + len(probs)])
        counts = round_to_counts(probs, (self.ties[first:end] - self.num_digits).tolist())
        found = self.decode(counts)
        self.num_digits += len(found)
        return torch.from_numpy(found.astype(np.int64))

    def decode(self, counts: np.ndarray) -> np.ndarray:
        """
        The digits `(rows,)` that were coded by these counts `(rows, digits)`.

        Raises:
            CodedFileError: where the words make no sense, or what was decoded costs more bits than they have.
        """
        try:
            found = self.coder.decode(CODED_BY, counts)
        except AssertionError as error:  # that of constriction for words which these distributions cannot have made
            raise CodedFileError(OTHER_BYTES) from error
        self.left -= least_bits(counts, found)
        if self.left < 0:
            raise CodedFileError(OTHER_BYTES)
        return found


__all__ = ["Decoder", "Encoder", "find_ties", "round_to_counts"]
