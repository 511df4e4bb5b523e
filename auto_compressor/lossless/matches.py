"""What followed the last symbols where they stood before: repeats, which a model does not remember from afar.

Shares of cases are counted in whole numbers, so an encoder and a decoder that have seen the same symbols mix them in
alike; a probability that was equal but for rounding stays so.
"""

import numpy as np
import torch


HASH_BITS = 21
# A match that went well so many times or more is of the next group.
LENGTHS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32])
# Before anything is counted: of a hundred matches of each group, how many go well, and how many cases that stands for.
WELL = np.array([30, 44, 52, 58, 62, 68, 74, 80, 86, 90, 94])
PRIOR, MAX_SEEN = 16, 2048  # more cases of a group are halved
LARGEST_SHARE = 1 - 2.0**-8  # of what is expected: it costs 0.006 bits or more


class Matches:
    """
    Expects, for each of several streams that are read side by side, the symbol that followed its last ones before, in
    any stream that was read.

    Args:
        order (`int`): How many symbols must be the same as before, 7 at most.
        largest_share (`float`, defaults to 1 - 2**-8): Of all probability, that an expected symbol gets.
    """

    def __init__(self, order: int, largest_share: float = LARGEST_SHARE):
        # A power of two in it moves a symbol out of the hash after `order` others.
        self.factor, self.largest_share = 5 << -(-HASH_BITS // order), largest_share
        # NumPy's zeros take memory when they are written to: a file may claim more symbols than it has.
        self.history, self.end = np.zeros(1, np.int32), 1  # 1 + symbol, streams one behind the other; 0 for none
        self.places = np.zeros(2**HASH_BITS, np.int64)  # in the history, of what followed a hash; 0 for none
        self.seen, self.right = np.full(len(WELL), 100 * PRIOR), WELL * PRIOR

    def begin(self, num_streams: int, num_steps: int):
        """Goes on with other streams, of so many symbols at most."""
        self.next = self.end + np.arange(num_streams) * num_steps
        self.end += num_streams * num_steps
        if self.end > len(self.history):  # twice as long as it was, or more
            before, self.history = self.history, np.zeros(max(self.end, 2 * len(self.history)), np.int32)
            self.history[: len(before)] = before
        self.expected, self.lengths, self.hashes = np.zeros((3, num_streams), np.int64)

    def groups(self, streams: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The symbols that these streams `(rows,)` expect, -1 for none, and the groups of their matches."""
        return self.history[self.expected[streams]] - 1, np.searchsorted(LENGTHS, self.lengths[streams], side="right")

    def mix(self, probs: torch.Tensor, streams: np.ndarray) -> torch.Tensor:
        """
        Moves a share of all probability to the symbols that are expected: what matches of a length have deserved.

        Args:
            probs (`torch.Tensor` of shape `(rows, size)`): Of the next symbols of these streams, float64 on the CPU.
            streams (`np.ndarray` of shape `(rows,)`): Each once.
        """
        guesses, groups = self.groups(streams)
        shares = np.where(guesses >= 0, np.minimum(self.right[groups] / self.seen[groups], self.largest_share), 0.0)
        mixed = probs.numpy() * (1 - shares)[:, None]
        mixed[np.arange(len(guesses)), guesses] += shares
        return torch.from_numpy(mixed)

    def read(self, symbols: np.ndarray, streams: np.ndarray):
        """Reads the next symbol `(rows,)` of these streams; all must have read as many before."""
        guesses, groups = self.groups(streams)
        hit = guesses == symbols
        self.count(groups[guesses >= 0], hit[guesses >= 0])
        places = self.next[streams]
        self.history[places] = symbols + 1
        self.next[streams] += 1
        self.lengths[streams] = np.where(hit, self.lengths[streams] + 1, 0)
        self.hashes[streams] = (self.hashes[streams] * self.factor + symbols + 1) % 2**HASH_BITS
        self.expected[streams] = np.where(hit, self.expected[streams] + 1, self.places[self.hashes[streams]])
        hashes, first = np.unique(self.hashes[streams], return_index=True)  # of several streams, the first one
        self.places[hashes] = places[first] + 1

    def count(self, groups: np.ndarray, hit: np.ndarray):
        np.add.at(self.seen, groups, 100)
        np.add.at(self.right, groups, 100 * hit)
        full = self.seen > 100 * MAX_SEEN
        self.seen[full] //= 2
        self.right[full] //= 2


__all__ = ["Matches"]
