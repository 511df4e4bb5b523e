"""What followed the last symbols where they stood before: repeats, which a model does not remember from afar.

What is expected depends on symbols alone. How likely it is thought to be is learned from what it would have gained so
far, in averages of what the model gave: a relative error of that comes out at most some sixteen times as large.
"""

import numpy as np
import torch


# A match that went well so many times or more is of the next group.
LENGTHS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32])
# Before anything is learned: percent of all probability for what a match of each group expects, and how many cases it
# stands for. About what was learned on a held-out text.
SHARES = np.array([15, 22, 29, 36, 43, 51, 62, 76, 82, 89, 90])
PRIOR, MAX_SEEN = 16, 2048  # and cases of a group; then they are halved
LEAST = 2.0**-100  # of a probability that is divided by: a symbol that a model excludes has none
LARGEST_SHARE = 1 - 2.0**-8  # of what is expected: it costs 0.006 bits or more


class Repeats:
    """
    Expects, for each of several streams that are read side by side, the symbol that followed its last ones before, in
    any stream that was read.

    Args:
        num_symbols (`int`): Symbols are below.
        order (`int`): How many of the last symbols, 7 at most, a match is found by.
        hash_bits (`int`, defaults to 21): Of their hash, which alone is compared.

    Attributes:
        lengths (`np.ndarray` of shape `(num_streams,)`): How often in a row what each stream expected came.
    """

    def __init__(self, num_symbols: int, order: int, hash_bits: int = 21):
        # A power of two in it moves a symbol out of the hash after `order` others.
        self.factor, self.num_hashes = 5 << -(-hash_bits // order), 2**hash_bits
        # NumPy's zeros take memory when they are written to: a file may claim more symbols than it has.
        self.places = np.zeros(self.num_hashes, np.int64)  # in the history, of what followed a hash; 0 for none
        # 1 + symbol, streams one behind the other; 0 for what is not read yet, and in front of all
        self.history, self.end = np.zeros(1, np.min_scalar_type(num_symbols)), 1

    def begin(self, num_streams: int, num_steps: int):
        """Goes on with other streams, of so many symbols at most."""
        self.next = self.end + np.arange(num_streams) * num_steps
        self.end += num_streams * num_steps
        if self.end >= len(self.history):  # twice as long as it was, or more
            before, self.history = self.history, np.zeros(max(self.end + 1, 2 * len(self.history)), self.history.dtype)
            self.history[: len(before)] = before
        self.expected, self.lengths, self.hashes = np.zeros((3, num_streams), np.int64)

    def guesses(self, streams: np.ndarray | slice) -> np.ndarray:
        """The symbols `(rows,)` that these streams expect, -1 for none."""
        return self.history[self.expected[streams]].astype(np.int64) - 1

    def read(self, symbols: np.ndarray, streams: np.ndarray | slice):
        """Reads the next symbol `(rows,)` of these streams."""
        hit, places = self.guesses(streams) == symbols, self.next[streams].copy()
        self.history[places] = symbols.astype(self.history.dtype) + 1
        self.next[streams] += 1
        hashes = (self.hashes[streams] * self.factor + symbols + 1) % self.num_hashes
        self.hashes[streams] = hashes
        self.lengths[streams] = np.where(hit, self.lengths[streams] + 1, 0)
        self.expected[streams] = np.where(hit, self.expected[streams] + 1, self.places[hashes])
        hashes, first = np.unique(hashes, return_index=True)  # of several streams, the first one
        self.places[hashes] = places[first] + 1


class Matches(Repeats):
    """
    Mixes what is expected with what a model gives, in the shares that would have made the symbols so far likeliest.

    The shares of a match and of the model are the weights of a mixture of two distributions, one of which is a single
    symbol. They are learned for each group of lengths by expectation maximisation, a symbol at a time (Cappé and
    Moulines, *On-line expectation-maximization algorithm for latent data models*, 2009): the share of a match is the
    mean of its responsibilities, how likely it was the match that gave a symbol.

    Args:
        num_symbols (`int`), order (`int`): As for [`Repeats`].
        largest_share (`float`, defaults to 1 - 2**-8): Of all probability, that an expected symbol gets.
    """

    def __init__(self, num_symbols: int, order: int, largest_share: float = LARGEST_SHARE):
        super().__init__(num_symbols, order)
        self.largest_share = largest_share
        self.given, self.seen = SHARES * PRIOR / 100, np.full(len(SHARES), float(PRIOR))  # by matches, and by both

    def expectations(self, streams: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What these streams expect, the groups of their matches, and their shares of probability, each `(rows,)`."""
        guesses, groups = self.guesses(streams), np.searchsorted(LENGTHS, self.lengths[streams], side="right")
        shares = np.minimum(self.given[groups] / self.seen[groups], self.largest_share)
        return guesses, groups, np.where(guesses >= 0, shares, 0.0)

    def mix(self, probs: torch.Tensor, streams: np.ndarray | slice) -> torch.Tensor:
        """
        The distributions of the next symbols of streams.

        Args:
            probs (`torch.Tensor` of shape `(rows, size)`): As a model gives them, float64 on the CPU.
            streams (`np.ndarray` of shape `(rows,)` or `slice`): Which streams they are of.
        """
        guesses, _, shares = self.expectations(streams)
        mixed = probs.numpy() * (1 - shares)[:, None]
        mixed[np.arange(len(shares)), guesses] += shares
        return torch.from_numpy(mixed)

    def learn(self, mixed: torch.Tensor, symbols: np.ndarray, streams: np.ndarray | slice):
        """Reads the next symbol `(rows,)` of these streams, and what it says about matches, from their mixed
        distributions `(rows, size)`."""
        guesses, groups, shares = self.expectations(streams)
        found = mixed.numpy()[np.arange(len(symbols)), symbols]
        responsibilities = np.where(guesses == symbols, shares, 0.0) / np.maximum(found, LEAST)
        matched = guesses >= 0
        np.add.at(self.given, groups[matched], responsibilities[matched])
        np.add.at(self.seen, groups[matched], 1.0)
        full = self.seen > MAX_SEEN
        self.given[full] /= 2
        self.seen[full] /= 2
        self.read(symbols, streams)


__all__ = ["Matches", "Repeats"]
