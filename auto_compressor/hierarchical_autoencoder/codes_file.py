"""The file of the codes of a [`HierarchicalAutoencoder`]: what it says about itself, and streams of whole numbers.

A file is a prefix (magic, version, lengths of the two parts behind it, their CRC-32), a JSON header
([`ByteCodecHeader`]) and streams, each in the shortest of its forms. Version 1 has the top codes per block and the top
codes (all of the first codebook, then of the second, ...). Its lossless files, which are no longer written, also have
a flag per patch that says whether its codes decode wrongly, the bytes that each of these patches stands for, and those
bytes. Version 3 is lossless: its codes may be coded under their language model and what matches them before, and its
last stream is what they leave to know, as [`exact_codec`] codes it. Version 2 is the same without matches.
"""

import json
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..files.coded_file import (
    CODES_MAGIC,
    CodedFileError,
    check_origin,
    most_symbols,
    naming,
    read_coded,
    require,
    write_parts,
)


MAGIC = CODES_MAGIC
VERSIONS = (1, 2, 3)
MAX_LZMA_MEMORY = 2**26  # the streams here need an eighth of it
FORMS = ("bits", "zlib", "lzma")
CODED = "range"  # the form of a stream that is coded under the distributions of the model
CODE_STREAMS, CORRECTION_STREAMS = 2, 3
MOST_BLOCKS = 2**12  # that are coded at once: decoding takes memory for them, whoever made the file
LARGEST = {"num_bytes": 2**50, "right_bytes": 2**50, "block_size": 2**31, "num_patches": 2**50}
LARGEST |= {"num_quantizers": 2**16, "codebook_size": 2**32, "batch_size": MOST_BLOCKS}
SMALLEST = {"block_size": 1, "num_quantizers": 1, "codebook_size": 1, "batch_size": 1}


@dataclass(frozen=True)
class ByteCodecHeader:
    """
    What a file says about itself.

    Args:
        model_type (`str`), model_hash (`str`): The model that made it, see [`weights_hash`].
        num_bytes (`int`), sha256 (`str`): Length and SHA-256 of the original.
        lossless (`bool`): Whether the original comes back, or what the codes keep of it.
        block_size (`int`): Bytes that were compressed together.
        num_patches (`int`), num_quantizers (`int`), codebook_size (`int`): Top patches of all blocks, codes of each,
            and values of a code.
        streams (`list[list]`): Form and stored bytes of every stream.
        right_bytes (`int`): Bytes of the original in patches that decode right from their codes alone; in version 1.
        batch_size (`int`): Blocks that were coded at once, and so are decoded; from version 2 on.
        version (`int`): Of the file.
    """

    model_type: str
    model_hash: str
    num_bytes: int
    sha256: str
    lossless: bool
    block_size: int
    num_patches: int
    num_quantizers: int
    codebook_size: int
    streams: list
    right_bytes: int = 0
    batch_size: int = 1
    version: int = VERSIONS[-1]

    @property
    def num_blocks(self) -> int:
        """As [`HierarchicalAutoencoder.blocks`] cuts them: one for an empty original."""
        return max(1, -(-self.num_bytes // self.block_size))

    @property
    def num_codes(self) -> int:
        return self.num_patches * self.num_quantizers

    @property
    def stream_forms(self) -> list[tuple[str, ...]]:
        """The forms that every stream may have."""
        if self.version > 1:
            return [FORMS, (*FORMS, CODED), (CODED,)]
        return [FORMS] * (CODE_STREAMS + CORRECTION_STREAMS * self.lossless)

    @staticmethod
    def names(version: int) -> list[str]:
        """The fields that a header of this version has, in order."""
        left_out = ("version", "right_bytes" if version > 1 else "batch_size")
        return sorted(field.name for field in fields(ByteCodecHeader) if field.name not in left_out)

    def facts(self) -> dict[str, Any]:
        """What it says, by the names of its version."""
        return {name: getattr(self, name) for name in self.names(self.version)}

    @classmethod
    def parse(cls, packed: bytes, version: int) -> "ByteCodecHeader":
        """Reads JSON; a `CodedFileError` if these are not its fields, or one of them is of another kind."""
        values, names = parse_json(packed), cls.names(version)
        require(isinstance(values, dict) and sorted(values) == names, f"its header must say {names}", values)
        header = cls(**values, version=version)
        check_origin(header.model_type, header.model_hash, header.sha256)
        known = (True,) if version > 1 else (True, False)
        rule = f"`lossless` in its header must be {' or '.join(map(json.dumps, known))}"
        require(any(header.lossless is value for value in known), rule, header.lossless)
        for name in LARGEST.keys() & set(names):
            least, most, found = SMALLEST.get(name, 0), LARGEST[name], values[name]
            rule = f"`{name}` in its header must be a whole number from {least} to {most}"
            require(type(found) is int and least <= found <= most, rule, found)
        return header

    def check(self, body_length: int):
        """Raises a `CodedFileError` for counts that do not go together, or not with the length of what follows."""
        blocks, most = self.num_blocks if self.num_bytes else 0, self.num_bytes
        require(self.right_bytes <= most, f"`right_bytes` in its header must be {most} at most", self.right_bytes)
        rule = f"`num_patches` in its header must be from {blocks} to {most}"
        require(blocks <= self.num_patches <= most, rule, self.num_patches)
        check_stream_list(self.streams, self.stream_forms, body_length)
        for (form, length), name in zip(self.streams[1:], ("num_codes", "num_bytes"), strict=False):
            if form == CODED:
                most, found = most_symbols(length), getattr(self, name)
                require(found <= most, f"`{name}` must be {most} at most in a stream of {length} bytes", found)


def parse_json(packed: bytes) -> Any:
    """A value; `None` for what is no JSON, or is nested too deep or has too long a number to be read."""
    try:
        return json.loads(packed)
    except (ValueError, RecursionError):
        return None


def check_stream_list(streams: Any, forms: list[tuple[str, ...]], body_length: int):
    """Raises a `CodedFileError` unless these are one of the forms and the length of every stream, which fill the
    body."""
    rule = f"`streams` in its header must be {len(forms)} pairs of a form and a length"
    require(isinstance(streams, list) and len(streams) == len(forms), rule, streams)
    for stream, known in zip(streams, forms, strict=True):
        require(isinstance(stream, list) and len(stream) == 2 and stream[0] in known, rule, stream)
        require(type(stream[1]) is int and stream[1] >= 0, rule, stream)
    found = sum(length for _, length in streams)
    require(found == body_length, f"the lengths of its streams must add up to {body_length}", found)


def pack_bits(values: np.ndarray, bits: int) -> bytes:
    """Whole numbers below `2**bits` (32 bits at most), each in so many bits."""
    columns = values.astype("<u4").view(np.uint8).reshape(-1, 4)
    return np.packbits(np.unpackbits(columns, axis=1, count=bits, bitorder="little"), bitorder="little").tobytes()


def unpack_bits(data: bytes, bits: int, count: int) -> np.ndarray:
    """The `count` numbers that `pack_bits` packed."""
    rows = np.unpackbits(np.frombuffer(data, np.uint8), count=bits * count, bitorder="little").reshape(count, bits)
    columns = np.packbits(np.pad(rows, ((0, 0), (0, 32 - bits))), axis=1, bitorder="little")
    return columns.view("<u4")[:, 0].astype(np.int64)


def small_dtype(limit: int) -> np.dtype:
    """The smallest unsigned integers that hold all below `limit`, little-endian."""
    return np.min_scalar_type(limit - 1).newbyteorder("<")


def write_stream(values: np.ndarray, limit: int) -> tuple[str, bytes]:
    """Whole numbers from 0 to `limit - 1` in their shortest form, and its name."""
    plain = values.astype(small_dtype(limit)).tobytes()
    forms = {
        "bits": pack_bits(values, (limit - 1).bit_length()),
        "zlib": zlib.compress(plain, level=9),
        "lzma": lzma.compress(plain, format=lzma.FORMAT_ALONE),
    }
    return min(forms.items(), key=lambda form: len(form[1]))


def decompress_bounded(stored: bytes, form: str, length: int) -> bytes:
    """What zlib or lzma compressed, which must be `length` bytes; no more are made on the way."""
    try:
        if form == "lzma":
            reader: Any = lzma.LZMADecompressor(lzma.FORMAT_ALONE, MAX_LZMA_MEMORY)
        else:
            reader = zlib.decompressobj()
        data = reader.decompress(stored, length + 1)
    except (zlib.error, lzma.LZMAError, EOFError, MemoryError) as error:
        raise CodedFileError(f"is damaged: a stream must be {form}, got: {error}.") from error
    require(len(data) == length, f"a stream must hold {length} bytes", len(data))
    require(reader.eof and not reader.unused_data, f"a stream must be all of what {form} wrote", stored)
    return data


def read_stream(stored: bytes, form: str, limit: int, count: int) -> np.ndarray:
    """The `count` numbers that `write_stream` wrote; a `CodedFileError` for what it cannot have written."""
    if form == "bits":
        bits = (limit - 1).bit_length()
        require(len(stored) == -(-bits * count // 8), f"a stream of {count} numbers must have their bits", len(stored))
        values = unpack_bits(stored, bits, count)
    else:
        dtype = small_dtype(limit)
        values = np.frombuffer(decompress_bounded(stored, form, count * dtype.itemsize), dtype).astype(np.int64)
    largest = values.max(initial=0)
    require(largest < limit, f"the numbers of a stream must be below {limit}", int(largest))
    return values


def split_streams(header: ByteCodecHeader, body: bytes) -> Iterator[tuple[bytes, str]]:
    """The stored bytes and the form of every stream, in turn."""
    start = 0
    for form, length in header.streams:
        yield body[start : start + length], form
        start += length


def write_file(header: ByteCodecHeader, streams: list[tuple[str, bytes]]) -> bytes:
    return write_parts(
        MAGIC, header.version, json.dumps(header.facts()).encode(), b"".join(stored for _, stored in streams)
    )


def read_file(blob: bytes) -> tuple[ByteCodecHeader, bytes]:
    """Returns header and body, which go together; see `read_header` for the errors."""
    return read_coded(blob, MAGIC, VERSIONS, ByteCodecHeader.parse)


def read_header(blob: bytes, name: str = "The file") -> ByteCodecHeader:
    """
    What a file of [`encode_bytes`] says about itself; `name` is what errors call it.

    Raises:
        ValueError: for what is no such file, or one that is truncated, damaged or of another version.
    """
    with naming(name):
        return read_file(blob)[0]


__all__ = ["ByteCodecHeader", "read_file", "read_header", "read_stream", "split_streams", "write_file", "write_stream"]
