"""The file of a lossless compressor: what it says about itself, ties of rounding, and the words of the range coder.

Version 3 is written, whose float64 coder knows what matches before. Version 2, without, and version 1, that of
language models of bytes only, are read too.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np

from ..files.coded_file import (
    LANGUAGE_MODEL_MAGIC,
    check_origin,
    most_symbols,
    naming,
    read_coded,
    require,
    write_parts,
)
from .vocabulary import BYTES


MAGIC = LANGUAGE_MODEL_MAGIC
VERSIONS = (1, 2, 3)
FIRST_FIELDS, FIELDS = struct.Struct("<32s32sQIIId"), struct.Struct("<B8s8s32sQQIIId")  # of version 1, and later
CODERS = ("float64", "integers", "stored")  # how probabilities are computed, or bytes stored, by the number in a file
IDENTITY_DIGITS = 16  # of the hashes of weights and vocabulary
MAX_STREAMS = 2**16 - 1


@dataclass(frozen=True)
class LosslessHeader:
    """
    What a file says about itself.

    Args:
        model_type (`str`), model_hash (`str`): The model that made it; 16 digits of [`~identity.weights_hash`], in
            version 1 all 64.
        sha256 (`str`), num_bytes (`int`): SHA-256 and length of the original.
        num_streams (`int`): Rows of the batch that predicts.
        window (`int`): Symbols of context that the model holds; 0 if it holds all.
        num_ties (`int`): Digits that were coded as equally likely ones because rounding was too close to call.
        ideal_bits (`float`): Sum of -log2 p over all symbols, p as the model gave it, and matches from version 3 on.
        num_symbols (`int`): Tokens, or bytes of a language model of bytes.
        vocabulary_hash (`str`): 16 digits of [`Vocabulary.hash`].
        coder (`str`): How probabilities are computed: `"float64"`, or `"integers"`, by a program that the family of
            the model has; `"stored"` for bytes that stand in the file as they are.
        version (`int`): Of the file.
    """

    model_type: str
    model_hash: str
    sha256: str
    num_bytes: int
    num_streams: int
    window: int
    num_ties: int
    ideal_bits: float
    num_symbols: int
    vocabulary_hash: str
    coder: str = CODERS[0]
    version: int = VERSIONS[-1]

    @property
    def num_steps(self) -> int:
        """Symbols of a stream; the last streams may have fewer, or none."""
        return -(-self.num_symbols // self.num_streams)

    @property
    def bits_per_byte(self) -> float:
        """What the model needs, without what the file adds; NaN if there are no bytes."""
        return self.ideal_bits / self.num_bytes if self.num_bytes else math.nan

    def pack(self) -> bytes:
        """As in the version that is written."""
        hashes = [bytes.fromhex(value) for value in (self.model_hash, self.vocabulary_hash, self.sha256)]
        numbers = self.num_bytes, self.num_symbols, self.num_streams, self.window, self.num_ties, self.ideal_bits
        return FIELDS.pack(CODERS.index(self.coder), *hashes, *numbers) + self.model_type.encode()

    @classmethod
    def unpack(cls, packed: bytes, version: int = VERSIONS[-1]) -> "LosslessHeader":
        fields = FIRST_FIELDS if version == 1 else FIELDS
        require(len(packed) >= fields.size, f"its header must have {fields.size} bytes or more", len(packed))
        values, model_type = list(fields.unpack_from(packed)), packed[fields.size :].decode(errors="replace")
        if version == 1:
            model_hash, sha256, num_bytes, *numbers = values
            kind, vocabulary_hash, num_symbols = 0, bytes.fromhex(BYTES.hash[:IDENTITY_DIGITS]), num_bytes
        else:
            kind, model_hash, vocabulary_hash, sha256, num_bytes, num_symbols, *numbers = values
        require(kind < len(CODERS), f"its coder must be from 0 to {len(CODERS) - 1}", kind)
        num_streams, window, num_ties, ideal_bits = numbers
        return cls(
            model_type=model_type,
            model_hash=model_hash.hex(),
            sha256=sha256.hex(),
            num_bytes=num_bytes,
            num_streams=num_streams,
            window=window,
            num_ties=num_ties,
            ideal_bits=ideal_bits,
            num_symbols=num_symbols,
            vocabulary_hash=vocabulary_hash.hex(),
            coder=CODERS[kind],
            version=version,
        )

    def check(self, body_length: int):
        """Raises a `CodedFileError` for counts that do not go together, or not with the length of what follows."""
        check_origin(self.model_type)
        in_range = 1 <= self.num_streams <= MAX_STREAMS
        require(in_range, f"`num_streams` in its header must be from 1 to {MAX_STREAMS}", self.num_streams)
        require(self.window != 1, "`window` in its header must be 0, or 2 or more", self.window)
        is_cost = math.isfinite(self.ideal_bits) and self.ideal_bits >= 0
        require(is_cost, "`ideal_bits` in its header must be 0 or more, and finite", self.ideal_bits)
        require(body_length % 4 == 0, "what follows its header must be words of 4 bytes", body_length)
        most = min(2 * self.num_symbols, body_length // self.tie_bytes)
        require(self.num_ties <= most, f"`num_ties` in its header must be {most} at most", self.num_ties)
        most = most_symbols(body_length - self.tie_bytes * self.num_ties)
        require(self.num_symbols <= most, f"`num_symbols` in its header must be {most} at most", self.num_symbols)

    @property
    def tie_bytes(self) -> int:
        """Bytes of the place of a tie: in version 1 its step and its stream, then its number among all digits."""
        return 8 if self.version == 1 else 4


def split_numbers(header: LosslessHeader, body: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The ties `(num_ties,)`, as numbers of digits, and the words of a body."""
    numbers = np.frombuffer(body, "<u4").astype(np.uint32)
    ties, words = np.split(numbers, [header.num_ties * header.tie_bytes // 4])
    ties = ties.astype(np.int64)
    if header.version == 1:
        ties = digit_numbers(header, *ties.reshape(-1, 2).T)
    inside = ties.size == 0 or (ties[0] >= 0 and ties[-1] < 2 * header.num_symbols)
    require(bool((np.diff(ties) > 0).all()) and inside, "its ties must be places in order", ties.tolist())
    return ties, words


def digit_numbers(header: LosslessHeader, steps: np.ndarray, streams: np.ndarray) -> np.ndarray:
    """The numbers of digits at these steps of these streams; -1 where there is none."""
    num_steps = max(header.num_steps, 1)
    whole, rest = divmod(header.num_symbols, num_steps)  # the first `rest` steps have a symbol of one more stream
    there = (steps < num_steps) & (streams < whole + (steps < rest))
    return np.where(there, steps * whole + np.minimum(steps, rest) + streams, -1)


def read_file(blob: bytes) -> tuple[LosslessHeader, bytes]:
    """Returns header and body, which go together; see `read_header` for the errors."""
    return read_coded(blob, MAGIC, VERSIONS, LosslessHeader.unpack)


def write_file(header: LosslessHeader, ties: list[int], words: np.ndarray) -> bytes:
    body = np.array(ties, "<u4").tobytes() + words.astype("<u4").tobytes()
    return write_parts(MAGIC, header.version, header.pack(), body)


def read_header(blob: bytes, name: str = "The file") -> LosslessHeader:
    """
    What a file of [`compress_bytes`] says about itself; `name` is what errors call it.

    Raises:
        ValueError: for what is no such file, or one that is truncated, damaged or of another version.
    """
    with naming(name):
        return read_file(blob)[0]


__all__ = ["CODERS", "LosslessHeader", "read_file", "read_header", "split_numbers", "write_file"]
