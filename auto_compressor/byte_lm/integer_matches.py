"""What followed the last bytes where they stood before: long repeats, which a small model does not remember.

In whole numbers throughout, so that an encoder and a decoder learn the same from what they both have seen.
"""

import numpy as np


HASH_BITS, HASH_FACTOR = 20, 5 << 4  # a factor 2**4 in it: after 5 bytes, nothing is left of an earlier one
# A match of so many bytes or more is of the next length group.
LENGTHS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256])
# A byte of at least so many parts of 4,096 in the prediction of the model is of the next likelihood group.
LIKELY = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 2560, 3072, 3584, 3840, 3968, 4032, 4064])
PARTS = 4096
# Before anything is counted: of a hundred bytes that the model thought unlikely, how many a match of each length group
# gets wrong. About that of the training text of the bundled model.
WRONG = np.array([70, 60, 56, 54, 52, 50, 42, 34, 28, 22, 12, 7, 5, 5])
PRIOR = 32  # cases that these stand for
SCALE, MAX_SEEN = 16, 1023  # what a case counts, and cases of a group; then they are halved
# A byte weighs so many times what all others do at most: then it costs 0.006 bits, as when the model is as sure as it
# can be, and what is left of a damaged file after its last word is not much.
MOST = 2**8


class Matches:
    """
    Expects, for each of several streams that are read side by side, the byte that followed its last bytes before, in
    any stream.

    How often that was right is counted by the length of the match and by how likely the model thought the byte, and
    the weight of the byte is set so that its share becomes that frequency.

    Args:
        num_streams (`int`): Streams.
        num_steps (`int`): Bytes of each one.
    """

    def __init__(self, num_streams: int, num_steps: int):
        self.starts = np.arange(num_streams) * num_steps
        self.step = 0
        # Streams one behind the other, and one byte that stands behind them.
        self.history = np.zeros(num_streams * num_steps + 1, np.uint8)
        self.places = np.full(2**HASH_BITS, -1)  # of the byte behind the last one with a hash; -1 for none
        self.hashes = np.zeros(num_streams, np.int64)
        self.expected = np.full(num_streams, -1)  # places of the bytes that are expected; -1 for none
        self.lengths = np.zeros(num_streams, np.int64)
        # (length groups, likelihood groups), times SCALE
        unlikely = PARTS - np.append(0, LIKELY)
        self.seen = np.full((len(WRONG), len(unlikely)), PRIOR * SCALE)
        self.right = self.seen - PRIOR * SCALE * WRONG[:, None] * unlikely // (100 * PARTS)
        self.matched = self.guesses = np.zeros(0, np.int64)
        self.group = self.matched, self.guesses

    def adjust(self, weights: np.ndarray):
        """Sets the weights of the expected bytes in `weights` `(rows, 256)`, whole numbers in float64, of the first
        streams."""
        rows = len(weights)
        self.matched = np.flatnonzero(self.expected[:rows] >= 0)
        self.guesses = self.history[self.expected[self.matched]]
        found = weights[self.matched, self.guesses].astype(np.int64)
        others = weights.sum(axis=1)[self.matched].astype(np.int64) - found
        likely = np.searchsorted(LIKELY, PARTS * found // (others + found), side="right")
        self.group = np.searchsorted(LENGTHS, self.lengths[self.matched], side="right"), likely
        right, seen = self.right[self.group], self.seen[self.group]
        share = np.minimum(others * right // (seen - right + 1), others * MOST)
        weights[self.matched, self.guesses] = np.maximum(share, 1)

    def read(self, symbols: np.ndarray):
        """Reads the bytes `(rows,)` of this step, after `adjust`; streams without a byte are not read any more."""
        rows = len(symbols)
        places = self.starts[:rows] + self.step
        self.history[places] = symbols
        self.count(symbols)
        hit = np.zeros(rows, bool)
        hit[self.matched] = self.guesses == symbols[self.matched]
        self.lengths = np.where(hit, self.lengths[:rows] + 1, 0)
        self.hashes = (self.hashes[:rows] * HASH_FACTOR + symbols + 1) % 2**HASH_BITS
        self.expected = np.where(hit, self.expected[:rows] + 1, self.places[self.hashes])
        hashes, first = np.unique(self.hashes, return_index=True)  # of several streams, the first one
        self.places[hashes] = places[first] + 1
        self.step += 1

    def count(self, symbols: np.ndarray):
        np.add.at(self.seen, self.group, SCALE)
        np.add.at(self.right, self.group, SCALE * (self.guesses == symbols[self.matched]))
        full = self.seen > SCALE * MAX_SEEN
        self.seen[full] //= 2
        self.right[full] //= 2


__all__ = ["Matches"]
