"""A compressor of any bytes: the top codes of a [`HierarchicalAutoencoder`], and what they get wrong, in one file.

A file is a prefix (magic, version, lengths of the two parts behind it, their CRC-32), a JSON header
([`ByteCodecHeader`]) and streams of whole numbers, each in the shortest of its forms: the top codes per block, the top
codes (all of the first codebook, then of the second, ...) and, for `lossless`, a flag per patch that says whether its
codes decode wrongly, the bytes that each of these patches stands for, and those bytes.
"""

import hashlib
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch

from ..files.coded_file import (
    CODES_MAGIC,
    CodedFileError,
    check_origin,
    check_original,
    check_weights,
    exact_copy,
    naming,
    read_parts,
    require,
    write_parts,
)
from ..files.identity import weights_hash
from ..tokenization_bytes import NUM_BYTES
from .configuration_hierarchical_autoencoder import HierarchicalAutoencoderConfig
from .modeling_hierarchical_autoencoder import HierarchicalAutoencoder, rows_to_bytes


MAGIC = CODES_MAGIC
VERSION = 1
Progress = Callable[[range], Iterable[int]]
MAX_LZMA_MEMORY = 2**26  # the streams here need an eighth of it
FORMS = ("bits", "zlib", "lzma")
CODE_STREAMS, CORRECTION_STREAMS = 2, 3
LARGEST = {"num_bytes": 2**50, "right_bytes": 2**50, "block_size": 2**31, "num_patches": 2**50}
LARGEST |= {"num_quantizers": 2**16, "codebook_size": 2**32}
SMALLEST = {"block_size": 1, "num_quantizers": 1, "codebook_size": 1}


@dataclass(frozen=True)
class ByteCodecHeader:
    """
    What a file says about itself.

    Args:
        model_type (`str`), model_hash (`str`): The model that made it, see [`weights_hash`].
        num_bytes (`int`), sha256 (`str`): Length and SHA-256 of the original.
        lossless (`bool`): Whether the original comes back, or what the codes keep of it.
        right_bytes (`int`): Bytes of the original in patches that decode right from their codes alone.
        block_size (`int`): Bytes that were compressed together.
        num_patches (`int`), num_quantizers (`int`), codebook_size (`int`): Top patches of all blocks, codes of each,
            and values of a code.
        streams (`list[list]`): Form and stored bytes of every stream.
    """

    model_type: str
    model_hash: str
    num_bytes: int
    sha256: str
    lossless: bool
    right_bytes: int
    block_size: int
    num_patches: int
    num_quantizers: int
    codebook_size: int
    streams: list

    @property
    def num_blocks(self) -> int:
        """As [`HierarchicalAutoencoder.blocks`] cuts them: one for an empty original."""
        return max(1, -(-self.num_bytes // self.block_size))

    @property
    def num_codes(self) -> int:
        return self.num_patches * self.num_quantizers

    @classmethod
    def parse(cls, packed: bytes) -> "ByteCodecHeader":
        """Reads JSON; a `CodedFileError` if these are not its fields, or one of them is of another kind."""
        values = parse_json(packed)
        names = [field.name for field in fields(cls)]
        require(isinstance(values, dict) and sorted(values) == sorted(names), f"its header must say {names}", values)
        header = cls(**values)
        check_origin(header.model_type, header.model_hash, header.sha256)
        require(isinstance(header.lossless, bool), "`lossless` in its header must be true or false", header.lossless)
        for name, most in LARGEST.items():
            least, found = SMALLEST.get(name, 0), values[name]
            rule = f"`{name}` in its header must be a whole number from {least} to {most}"
            require(type(found) is int and least <= found <= most, rule, found)
        return header

    def check(self, body_length: int):
        """Raises a `CodedFileError` for counts that do not go together, or not with the length of what follows."""
        blocks, most = self.num_blocks if self.num_bytes else 0, self.num_bytes
        require(self.right_bytes <= most, f"`right_bytes` in its header must be {most} at most", self.right_bytes)
        rule = f"`num_patches` in its header must be from {blocks} to {most}"
        require(blocks <= self.num_patches <= most, rule, self.num_patches)
        check_stream_list(self.streams, CODE_STREAMS + CORRECTION_STREAMS * self.lossless, body_length)


def parse_json(packed: bytes) -> Any:
    """A value; `None` for what is no JSON, or is nested too deep or has too long a number to be read."""
    try:
        return json.loads(packed)
    except (ValueError, RecursionError):
        return None


def check_stream_list(streams: Any, count: int, body_length: int):
    """Raises a `CodedFileError` unless these are forms and lengths of `count` streams that fill the body."""
    rule = f"`streams` in its header must be {count} pairs of a form and a length"
    require(isinstance(streams, list) and len(streams) == count, rule, streams)
    for stream in streams:
        require(isinstance(stream, list) and len(stream) == 2 and stream[0] in FORMS, rule, stream)
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
            reader = lzma.LZMADecompressor(lzma.FORMAT_ALONE, MAX_LZMA_MEMORY)
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


@dataclass(frozen=True)
class Patches:
    """
    The top patches of blocks.

    Args:
        counts (`np.ndarray` of shape `(blocks,)`): Patches of every block.
        codes (`np.ndarray` of shape `(patches, num_quantizers)`): Their codes.
        lengths (`np.ndarray` of shape `(patches,)`): Bytes of every patch.
        data (`np.ndarray` of shape `(bytes,)`): Those bytes, joined.
    """

    counts: np.ndarray
    codes: np.ndarray
    lengths: np.ndarray
    data: np.ndarray

    @classmethod
    def join(cls, parts: list["Patches"]) -> "Patches":
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


@torch.no_grad()
def encode_blocks(model: HierarchicalAutoencoder, data: bytes) -> Patches:
    """The patches of the blocks of `data`, with the bytes that they were made of."""
    output = model.encode(*model.blocks(data))
    codes = output.codes.transpose(1, 2).cpu()
    present = codes[..., 0] >= 0
    lengths = output.lengths.cpu()[present]
    values = np.frombuffer(data, np.uint8)
    return Patches(present.sum(dim=1).numpy(), codes[present].numpy(), lengths.numpy(), values)


def decode_blocks(model: HierarchicalAutoencoder, counts: np.ndarray, codes: np.ndarray) -> Patches:
    """The patches of blocks, with the bytes that their codes decode to."""
    present = torch.arange(counts.max()) < torch.from_numpy(counts)[:, None]
    rows = torch.full((*present.shape, codes.shape[1]), -1)
    rows[present] = torch.from_numpy(codes)
    output = model.decode(rows.transpose(1, 2).to(model.device))
    values = np.frombuffer(rows_to_bytes(output.sequences), np.uint8)
    return Patches(counts, codes, output.lengths.cpu()[present].numpy(), values)


def encode_and_decode(
    model: HierarchicalAutoencoder, decoder: HierarchicalAutoencoder, data: bytes, batch_size: int, progress: Progress
) -> tuple[Patches, Patches]:
    """The patches of `data`, and what the decoder makes of them."""
    size, original, decoded = model.config.block_size * batch_size, [], []
    for start in progress(range(0, max(1, len(data)), size)):
        original.append(encode_blocks(model, data[start : start + size]))
        decoded.append(decode_blocks(decoder, original[-1].counts, original[-1].codes))
    return Patches.join(original), Patches.join(decoded)


def decode_patches(
    decoder: HierarchicalAutoencoder, counts: np.ndarray, codes: np.ndarray, batch_size: int, progress: Progress
) -> Patches:
    """As `decode_blocks`, `batch_size` blocks at once."""
    ends, decoded = np.concatenate([[0], counts.cumsum()]), []
    for start in progress(range(0, len(counts), batch_size)):
        batch = counts[start : start + batch_size]
        decoded.append(decode_blocks(decoder, batch, codes[ends[start] : ends[start + len(batch)]]))
    return Patches.join(decoded)


def wrong_patches(original: Patches, decoded: Patches) -> np.ndarray:
    """Which patches were decoded to other bytes than they have: `(patches,)`."""
    wrong = original.lengths != decoded.lengths
    compared = original.data[np.repeat(~wrong, original.lengths)]
    differs = compared != decoded.data[np.repeat(~wrong, decoded.lengths)]
    patches = np.repeat(np.flatnonzero(~wrong), original.lengths[~wrong])
    wrong[patches[differs]] = True
    return wrong


def correct_patches(decoded: Patches, wrong: np.ndarray, lengths: np.ndarray, right: np.ndarray) -> np.ndarray:
    """All bytes, with the `right` ones, joined, in the place of `wrong` patches, and `lengths` those of the right."""
    all_lengths = decoded.lengths.copy()
    all_lengths[wrong] = lengths
    replaced = np.repeat(wrong, all_lengths)
    data = np.empty(len(replaced), np.uint8)
    data[replaced] = right
    data[~replaced] = decoded.data[np.repeat(~wrong, decoded.lengths)]
    return data


def check_arguments(model: HierarchicalAutoencoder, batch_size: int):
    if not isinstance(model, HierarchicalAutoencoder):
        raise ValueError(f"`model` must be a HierarchicalAutoencoder, got {type(model).__name__}.")
    if model.training:
        raise ValueError("`model` must be in evaluation mode, it is in training mode, which changes its codebooks.")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"`batch_size` must be an integer of 1 or more, got {batch_size!r}.")


def read_file(blob: bytes) -> tuple[ByteCodecHeader, bytes]:
    """Returns header and body, which go together; see `read_header` for the errors."""
    packed, body = read_parts(blob, MAGIC, VERSION)
    header = ByteCodecHeader.parse(packed)
    header.check(len(body))
    return header, body


def read_header(blob: bytes, name: str = "The file") -> ByteCodecHeader:
    """
    What a file of [`encode_bytes`] says about itself; `name` is what errors call it.

    Raises:
        ValueError: for what is no such file, or one that is truncated, damaged or of another version.
    """
    with naming(name):
        return read_file(blob)[0]


def split_streams(header: ByteCodecHeader, body: bytes) -> Iterator[tuple[bytes, str]]:
    """The stored bytes and the form of every stream, in turn."""
    start = 0
    for form, length in header.streams:
        yield body[start : start + length], form
        start += length


def encode_bytes(
    model: HierarchicalAutoencoder,
    data: bytes,
    lossless: bool = False,
    batch_size: int = 32,
    progress: Progress = iter,
) -> bytes:
    """
    Compresses bytes of any kind and number to a file, which [`decode_bytes`] reads with the same model.

    Without `lossless` the file holds the codes, and what comes back is `model.reconstruct(data)`: greedily decoded in
    the dtype of the model, where ties may fall differently with another batch size or machine. With it the file also
    holds what the codes get wrong, and both sides decode a float64 copy of the model. Nobody can promise the same
    rounding on every machine and in every version of PyTorch, but in float64 it decides only between bytes that are
    equally likely to about 14 digits; and [`decode_bytes`] returns the original, by its SHA-256, or raises.

    Args:
        model (`HierarchicalAutoencoder`): In evaluation mode; it is left as it is.
        data (`bytes`): What is compressed. Blocks of `model.config.block_size` bytes know nothing of each other.
        lossless (`bool`, defaults to `False`): Whether every byte must come back.
        batch_size (`int`, defaults to 32): Blocks that are compressed at once.
        progress (`Callable`, *optional*): Wraps the range over the batches, as `tqdm.tqdm` does.

    Returns:
        `bytes`: The file, as this module describes it.

    Raises:
        ValueError: for arguments of another type, or a model in training mode.
    """
    check_arguments(model, batch_size)
    if not isinstance(data, bytes | bytearray):
        raise ValueError(f"`data` must be bytes, got {type(data).__name__}.")
    decoder = exact_copy(model) if lossless else model
    original, decoded = encode_and_decode(model, decoder, bytes(data), batch_size, progress)
    wrong = wrong_patches(original, decoded)
    streams = code_streams(model.config, original)
    if lossless:
        streams += correction_streams(model.config, original, wrong)
    right_bytes = len(data) - int(original.lengths[wrong].sum())
    header = make_header(model, data, original, lossless, right_bytes, streams)
    body = b"".join(stored for _, stored in streams)
    return write_parts(MAGIC, VERSION, json.dumps(asdict(header)).encode(), body)


def code_streams(config: HierarchicalAutoencoderConfig, patches: Patches) -> list[tuple[str, bytes]]:
    codes = write_stream(patches.codes.T.flatten(), config.level_configs[-1].codebook_size)
    return [write_stream(patches.counts, config.block_size + 1), codes]


def correction_streams(
    config: HierarchicalAutoencoderConfig, patches: Patches, wrong: np.ndarray
) -> list[tuple[str, bytes]]:
    lengths = write_stream(patches.lengths[wrong], config.block_size + 1)
    return [write_stream(wrong, 2), lengths, write_stream(patches.data[np.repeat(wrong, patches.lengths)], NUM_BYTES)]


def make_header(
    model: HierarchicalAutoencoder,
    data: bytes,
    patches: Patches,
    lossless: bool,
    right_bytes: int,
    streams: list[tuple[str, bytes]],
) -> ByteCodecHeader:
    return ByteCodecHeader(
        model_type=model.config.model_type,
        model_hash=weights_hash(model),
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        lossless=lossless,
        right_bytes=right_bytes,
        block_size=model.config.block_size,
        num_patches=len(patches.codes),
        num_quantizers=patches.codes.shape[1],
        codebook_size=model.config.level_configs[-1].codebook_size,
        streams=[[form, len(stored)] for form, stored in streams],
    )


def decode_bytes(
    model: HierarchicalAutoencoder,
    blob: bytes,
    batch_size: int = 32,
    progress: Progress = iter,
    name: str = "The file",
) -> bytes:
    """
    The bytes of a file of [`encode_bytes`]: the original of a lossless one, of another what its codes keep.

    Args:
        model (`HierarchicalAutoencoder`): With the weights that made the file, in evaluation mode; it is left as it
            is.
        blob (`bytes`): The file.
        batch_size (`int`, defaults to 32): Blocks that are decoded at once, as many as when encoding or not.
        progress (`Callable`, *optional*): Wraps the range over the batches, as `tqdm.tqdm` does.
        name (`str`, *optional*): What errors call the file.

    Raises:
        ValueError: for arguments of another type; for what is no such file, or one that is truncated, damaged, of
            another version or made by other weights; and if it decodes to other bytes than its original, though it is
            lossless or says that all of them come back.
    """
    check_arguments(model, batch_size)
    with naming(name):
        header, body = read_file(blob)
        check_weights(model, header.model_type, header.model_hash)
        check_config(model.config, header)
        counts, codes, corrections = read_streams(header, body)
        decoder = exact_copy(model) if header.lossless else model
        decoded = decode_patches(decoder, counts, codes, batch_size, progress)
        data = (correct_patches(decoded, *corrections) if header.lossless else decoded.data).tobytes()
        if header.lossless or header.right_bytes == header.num_bytes:
            check_original(data, header.sha256)
        return data


def check_config(config: HierarchicalAutoencoderConfig, header: ByteCodecHeader):
    """Raises a `CodedFileError` for sizes that are not those of the model."""
    top = config.level_configs[-1]
    for name, expected in (
        ("block_size", config.block_size),
        ("num_quantizers", top.num_quantizers),
        ("codebook_size", top.codebook_size),
    ):
        found = getattr(header, name)
        require(found == expected, f"`{name}` in its header must be {expected}, that of the model", found)


def read_streams(header: ByteCodecHeader, body: bytes) -> tuple[np.ndarray, np.ndarray, tuple | None]:
    """Counts and codes of all blocks, and the corrections of a lossless file; see [`Patches`] for the shapes."""
    streams = split_streams(header, body)
    counts = read_stream(*next(streams), header.block_size + 1, header.num_blocks)
    check_counts(header, counts)
    codes = read_stream(*next(streams), header.codebook_size, header.num_codes).reshape(header.num_quantizers, -1).T
    return counts, codes, read_corrections(header, streams) if header.lossless else None


def check_counts(header: ByteCodecHeader, counts: np.ndarray):
    """Raises a `CodedFileError` unless every block has a patch, no more than bytes, and all have as many as said."""
    sizes = np.full(header.num_blocks, header.block_size)
    sizes[-1] = header.num_bytes - header.block_size * (header.num_blocks - 1)
    fit = (counts <= sizes) & (counts >= np.minimum(sizes, 1))
    require(bool(fit.all()), "a block must have from 1 patch to one per byte", int(counts[~fit][:1].sum()))
    found = int(counts.sum())
    require(found == header.num_patches, f"its blocks must have {header.num_patches} patches", found)


def read_corrections(
    header: ByteCodecHeader, streams: Iterator[tuple[bytes, str]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flags of wrong patches `(patches,)`, and their lengths and bytes."""
    wrong = read_stream(*next(streams), 2, header.num_patches).astype(bool)
    lengths = read_stream(*next(streams), header.block_size + 1, int(wrong.sum()))
    found, expected = int(lengths.sum()), header.num_bytes - header.right_bytes
    require(found == expected, f"its corrections must have {expected} bytes", found)
    return wrong, lengths, read_stream(*next(streams), NUM_BYTES, found)


__all__ = ["ByteCodecHeader", "decode_bytes", "encode_bytes", "read_header"]
