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

import numpy as np
import torch

from .coded_file import check_original, check_weights, exact_copy, read_parts, weights_hash, write_parts
from .configuration_hierarchical_autoencoder import HierarchicalAutoencoderConfig
from .modeling_hierarchical_autoencoder import HierarchicalAutoencoder, rows_to_bytes
from .tokenization_bytes import NUM_BYTES


MAGIC = b"\x89ACZ\r\n\x1a\n"  # no text, and damaged by a transfer that takes it for text
VERSION = 1
Progress = Callable[[range], Iterable[int]]
DECOMPRESSORS = {"zlib": zlib.decompress, "lzma": lzma.decompress}


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


def read_stream(stored: bytes, form: str, limit: int, count: int) -> np.ndarray:
    """The `count` numbers that `write_stream` wrote."""
    if form == "bits":
        return unpack_bits(stored, (limit - 1).bit_length(), count)
    return np.frombuffer(DECOMPRESSORS[form](stored), small_dtype(limit)).astype(np.int64)


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
    """Returns header and body; see `read_header` for the errors."""
    header, body = read_parts(blob, MAGIC, VERSION, "encode_bytes")
    return ByteCodecHeader(**json.loads(header)), body


def read_header(blob: bytes) -> ByteCodecHeader:
    """
    What a file of [`encode_bytes`] says about itself.

    Raises:
        ValueError: for what is no such file, or one that is truncated, damaged or of another version.
    """
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
    model: HierarchicalAutoencoder, blob: bytes, batch_size: int = 32, progress: Progress = iter
) -> bytes:
    """
    The bytes of a file of [`encode_bytes`]: the original of a lossless one, of another what its codes keep.

    Args:
        model (`HierarchicalAutoencoder`): With the weights that made the file, in evaluation mode; it is left as it
            is.
        blob (`bytes`): The file.
        batch_size (`int`, defaults to 32): Blocks that are decoded at once, as many as when encoding or not.
        progress (`Callable`, *optional*): Wraps the range over the batches, as `tqdm.tqdm` does.

    Raises:
        ValueError: for arguments of another type; for what is no such file, or one that is truncated, damaged, of
            another version or made by other weights; and if a lossless file decodes to other bytes than its original.
    """
    check_arguments(model, batch_size)
    header, body = read_file(blob)
    check_weights(model, header.model_type, header.model_hash)
    streams = split_streams(header, body)
    counts = read_stream(*next(streams), header.block_size + 1, header.num_blocks)
    codes = read_stream(*next(streams), header.codebook_size, header.num_codes).reshape(header.num_quantizers, -1).T
    decoder = exact_copy(model) if header.lossless else model
    decoded = decode_patches(decoder, counts, codes, batch_size, progress)
    if not header.lossless:
        return decoded.data.tobytes()
    data = correct_patches(decoded, *read_corrections(header, streams)).tobytes()
    check_original(data, header.sha256)
    return data


def read_corrections(
    header: ByteCodecHeader, streams: Iterator[tuple[bytes, str]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flags of wrong patches `(patches,)`, and their lengths and bytes."""
    wrong = read_stream(*next(streams), 2, header.num_patches).astype(bool)
    lengths = read_stream(*next(streams), header.block_size + 1, int(wrong.sum()))
    return wrong, lengths, read_stream(*next(streams), NUM_BYTES, int(lengths.sum()))


__all__ = ["ByteCodecHeader", "decode_bytes", "encode_bytes", "read_header"]
