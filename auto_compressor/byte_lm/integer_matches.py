"""What followed the last bytes where they stood before: long repeats, which a small model does not remember.

In whole numbers throughout, so that an encoder and a decoder learn the same from what they both have seen.
"""

import numpy as np

from ..lossless.matches import Repeats
from ..tokenization_bytes import NUM_BYTES


ORDER, HASH_BITS = 5, 20
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


class Matches(Repeats):
    """
    Gives the byte that is expected the weight it has deserved.

    How often that was right is counted by the length of the match and by how likely the model thought the byte, and
    the weight of the byte is set so that its share becomes that frequency.

    Args:
        num_streams (`int`): Streams.
        num_steps (`int`): Bytes of each one.
    """

    def __init__(self, num_streams: int, num_steps: int):
        super().__init__(NUM_BYTES, ORDER, HASH_BITS)
        self.begin(num_streams, num_steps)
        unlikely = PARTS - np.append(0, LIKELY)
        self.seen = np.full((len(WRONG), len(unlikely)), PRIOR * SCALE)  # (length groups, likelihood groups)
        self.right = self.seen - PRIOR * SCALE * WRONG[:, None] * unlikely // (100 * PARTS)
        self.matched, self.guessed = np.zeros((2, 0), np.int64)
        self.group: tuple[np.ndarray, np.ndarray] = self.matched, self.guessed

    def guesses(self, streams: np.ndarray | slice) -> np.ndarray:
        """As [`Repeats.guesses`], with the byte 0 for one that another stream reads at the same step."""
        return np.where(self.expected[streams] > 0, super().guesses(streams).clip(min=0), -1)

    def adjust(self, weights: np.ndarray):
        """Sets the weights of the expected bytes in `weights` `(rows, 256)`, whole numbers in float64, of the first
        streams."""
        guesses = self.guesses(slice(len(weights)))
        self.matched = np.flatnonzero(guesses >= 0)
        self.guessed = guesses[self.matched]
        found = weights[self.matched, self.guessed].astype(np.int64)
        others = weights.sum(axis=1)[self.matched].astype(np.int64) - found
        likely = np.searchsorted(LIKELY, PARTS * found // (others + found), side="right")
        self.group = np.searchsorted(LENGTHS, self.lengths[self.matched], side="right"), likely
        right, seen = self.right[self.group], self.seen[self.group]
        share = np.minimum(others * right // (seen - right + 1), others * MOST)
        weights[self.matched, self.guessed] = np.maximum(share, 1)

    def read_bytes(self, symbols: np.ndarray):
        """Reads the bytes `(rows,)` of this step, after `adjust`; streams without a byte are not read any more."""
        np.add.at(self.seen, self.group, SCALE)
        np.add.at(self.right, self.group, SCALE * (self.guessed == symbols[self.matched]))
        full = self.seen > SCALE * MAX_SEEN
        self.seen[full] //= 2
        self.right[full] //= 2
        self.read(symbols, slice(len(symbols)))


__all__ = ["Matches"]
