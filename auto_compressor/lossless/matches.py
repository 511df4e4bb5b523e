"""What followed the last symbols where they stood before: repeats, which a model does not remember from afar.

Cases are counted in whole numbers, so an encoder and a decoder that have seen the same symbols expect the same; and a
probability that was equal but for rounding stays so when an expectation is mixed in.
"""

import numpy as np
import torch


# A match that went well so many times or more is of the next group.
LENGTHS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32])
# Before anything is counted: of a hundred matches of each group, how many go well, and how many cases that stands for.
WELL = np.array([30, 44, 52, 58, 62, 68, 74, 80, 86, 90, 94])
PRIOR, MAX_SEEN = 16, 2048  # and cases of a group; then they are halved
LARGEST_SHARE = 1 - 2.0**-8  # of what is expected: it costs 0.006 bits or more


class Counts:
    """
    How many of all cases of a group went well.

    Args:
        right (`np.ndarray`), seen (`np.ndarray`): Of each group before the first case.
        case (`int`): What a case counts.
        most (`int`): Cases of a group; where there are more, both are halved.
    """

    def __init__(self, right: np.ndarray, seen: np.ndarray, case: int, most: int):
        self.right, self.seen, self.case, self.most = right, seen, case, most

    def add(self, groups, well: np.ndarray):
        """Adds cases `(cases,)` of groups, by the index of each."""
        np.add.at(self.seen, groups, self.case)
        np.add.at(self.right, groups, self.case * well)
        full = self.seen > self.case * self.most
        self.seen[full] //= 2
        self.right[full] //= 2


class Repeats:
    """
    Expects, for each of several streams that are read side by side, the symbol that followed its last ones before, in
    any stream that was read.

    Args:
        num_symbols (`int`): Symbols are below.
        order (`int`): How many symbols must be the same as before, 7 at most.
        hash_bits (`int`, defaults to 21): Of what the last symbols are found by.

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
    Mixes what is expected with what a model gives: it has the share of all probability that matches of its length have
    deserved so far.

    Args:
        num_symbols (`int`), order (`int`): As for [`Repeats`].
        largest_share (`float`, defaults to 1 - 2**-8): Of all probability, that an expected symbol gets.
    """

    def __init__(self, num_symbols: int, order: int, largest_share: float = LARGEST_SHARE):
        super().__init__(num_symbols, order)
        self.largest_share = largest_share
        self.counts = Counts(WELL * PRIOR, np.full(len(WELL), 100 * PRIOR), 100, MAX_SEEN)

    def groups(self, streams: np.ndarray) -> np.ndarray:
        """The groups `(rows,)` of the matches of these streams."""
        return np.searchsorted(LENGTHS, self.lengths[streams], side="right")

    def mix(self, probs: torch.Tensor, streams: np.ndarray) -> torch.Tensor:
        """
        The distributions of the next symbols of streams.

        Args:
            probs (`torch.Tensor` of shape `(rows, size)`): As a model gives them, float64 on the CPU.
            streams (`np.ndarray` of shape `(rows,)`): Which streams they are of.
        """
        guesses, groups = self.guesses(streams), self.groups(streams)
        shares = np.minimum(self.counts.right[groups] / self.counts.seen[groups], self.largest_share)
        shares = np.where(guesses >= 0, shares, 0.0)  # (rows,)
        mixed = probs.numpy() * (1 - shares)[:, None]
        mixed[np.arange(len(guesses)), guesses] += shares
        return torch.from_numpy(mixed)

    def read(self, symbols: np.ndarray, streams: np.ndarray):
        guesses, groups = self.guesses(streams), self.groups(streams)
        matched = guesses >= 0
        self.counts.add(groups[matched], guesses[matched] == symbols[matched])
        super().read(symbols, streams)


__all__ = ["Counts", "Matches", "Repeats"]
