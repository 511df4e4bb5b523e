"""A compressor of any bytes: the top codes of a [`HierarchicalAutoencoder`] in a file, by themselves or without loss.

By themselves they decode to most of the bytes. Without loss, they are coded under their language model, and what they
leave to know under the expanders ([`exact_codec`]). [`codes_file`] has the format; lossless files of version 1, which
hold what the codes get wrong, are read too.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import torch

from ..files.coded_file import check_data, check_original, check_weights, exact_copy, naming, require
from ..files.identity import weights_hash
from ..lossless.matches import LARGEST_SHARE
from ..tokenization_bytes import NUM_BYTES
from .codes_file import (
    CODED,
    MOST_BLOCKS,
    ByteCodecHeader,
    read_file,
    read_header,
    read_stream,
    split_streams,
    write_file,
    write_stream,
)
from .configuration_hierarchical_autoencoder import HierarchicalAutoencoderConfig
from .modeling_hierarchical_autoencoder import HierarchicalAutoencoder, rows_to_bytes


Progress = Callable[[range], Iterable[int]]


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


def code_rows(counts: np.ndarray, codes: np.ndarray) -> torch.LongTensor:
    """Codes `(patches, num_quantizers)` as rows of blocks `(blocks, patches, num_quantizers)`, -1 behind the last."""
    present = torch.arange(counts.max()) < torch.from_numpy(counts)[:, None]  # (blocks, patches)
    rows = torch.full((*present.shape, codes.shape[1]), -1)
    rows[present] = torch.tensor(codes)
    return rows


def decode_blocks(model: HierarchicalAutoencoder, counts: np.ndarray, codes: np.ndarray) -> Patches:
    """The patches of blocks, with the bytes that their codes decode to."""
    rows = code_rows(counts, codes)
    output = model.decode(rows.transpose(1, 2).to(model.device))
    values = np.frombuffer(rows_to_bytes(output.sequences), np.uint8)
    return Patches(counts, codes, output.lengths.cpu()[rows[..., 0] >= 0].numpy(), values)


def encode_and_decode(
    model: HierarchicalAutoencoder, data: bytes, batch_size: int, progress: Progress
) -> tuple[Patches, Patches]:
    """The patches of `data`, and what the model makes of their codes."""
    size, original, decoded = model.config.block_size * batch_size, [], []
    for start in progress(range(0, max(1, len(data)), size)):
        original.append(encode_blocks(model, data[start : start + size]))
        decoded.append(decode_blocks(model, original[-1].counts, original[-1].codes))
    return Patches.join(original), Patches.join(decoded)


def batches_of(
    counts: np.ndarray, codes: np.ndarray, batch_size: int, progress: Progress
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Counts and codes of `batch_size` blocks at a time."""
    ends = np.concatenate([[0], counts.cumsum()])
    for start in progress(range(0, len(counts), batch_size)):
        batch = counts[start : start + batch_size]
        yield batch, codes[ends[start] : ends[start + len(batch)]]


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
    if not isinstance(batch_size, int) or not 1 <= batch_size <= MOST_BLOCKS:
        raise ValueError(f"`batch_size` must be an integer from 1 to {MOST_BLOCKS}, got {batch_size!r}.")


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
    holds all that the codes leave to know, and both sides run a float64 copy of the model: [`~lossless.codec`] says
    why they see the same numbers, elsewhere too. [`decode_bytes`] returns the original, by its SHA-256, or raises.
    `lossless` needs constriction.

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
    check_data(data)
    encode = encode_exactly if lossless else encode_with_loss
    return write_file(*encode(model, bytes(data), batch_size, progress))


def encode_with_loss(
    model: HierarchicalAutoencoder, data: bytes, batch_size: int, progress: Progress
) -> tuple[ByteCodecHeader, list[tuple[str, bytes]]]:
    """Header and streams of the codes alone, in version 1."""
    original, decoded = encode_and_decode(model, data, batch_size, progress)
    right_bytes = len(data) - int(original.lengths[wrong_patches(original, decoded)].sum())
    streams = plain_streams(model.config, original.counts, original.codes)
    facts = {"lossless": False, "right_bytes": right_bytes, "version": 1}
    return make_header(model, data, len(original.codes), streams, facts), streams


def encode_exactly(
    model: HierarchicalAutoencoder, data: bytes, batch_size: int, progress: Progress
) -> tuple[ByteCodecHeader, list[tuple[str, bytes]]]:
    """Header and streams of everything, in version 3."""
    from .exact_codec import encode_batches, pack_words  # needs constriction

    size = model.config.block_size * batch_size
    batches = (data[start : start + size] for start in progress(range(0, max(1, len(data)), size)))
    rows, for_codes, for_bytes = encode_batches(model, batches)
    present = [part[..., 0].cpu() >= 0 for part in rows]  # each (blocks, patches)
    counts = np.concatenate([part.sum(dim=1).numpy() for part in present])  # (blocks,)
    codes = np.concatenate([part.cpu()[mask].numpy() for part, mask in zip(rows, present, strict=True)])
    plain_counts, plain_codes = plain_streams(model.config, counts, codes)
    coded_codes, coded_bytes = ((CODED, pack_words(encoder)) for encoder in (for_codes, for_bytes))
    shortest = min(plain_codes, coded_codes, key=lambda stream: len(stream[1]))
    streams = [plain_counts, shortest, coded_bytes]
    return make_header(model, data, len(codes), streams, {"lossless": True, "batch_size": batch_size}), streams


def plain_streams(
    config: HierarchicalAutoencoderConfig, counts: np.ndarray, codes: np.ndarray
) -> list[tuple[str, bytes]]:
    """Counts of patches `(blocks,)` and codes `(patches, num_quantizers)`, each in its shortest form."""
    packed = write_stream(codes.T.flatten(), config.level_configs[-1].codebook_size)
    return [write_stream(counts, config.block_size + 1), packed]


def make_header(
    model: HierarchicalAutoencoder, data: bytes, num_patches: int, streams: list[tuple[str, bytes]], facts: dict
) -> ByteCodecHeader:
    top = model.config.level_configs[-1]
    return ByteCodecHeader(
        model_type=model.config.model_type,
        model_hash=weights_hash(model),
        num_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        block_size=model.config.block_size,
        num_patches=num_patches,
        num_quantizers=top.num_quantizers,
        codebook_size=top.codebook_size,
        streams=[[form, len(stored)] for form, stored in streams],
        **facts,
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
        batch_size (`int`, defaults to 32): Blocks that are decoded at once, as many as when encoding or not. A
            lossless file says itself how many.
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
        decode = decode_plain if header.version == 1 else decode_exactly
        data = decode(model, header, body, batch_size, progress)
        if header.lossless or header.right_bytes == header.num_bytes:
            check_original(data, header.sha256)
            require(header.num_bytes == len(data), f"`num_bytes` in its header must be {len(data)}", header.num_bytes)
        return data


def decode_plain(
    model: HierarchicalAutoencoder, header: ByteCodecHeader, body: bytes, batch_size: int, progress: Progress
) -> bytes:
    """What the codes of a file of version 1 decode to, with its corrections if it is lossless."""
    streams = split_streams(header, body)
    counts, codes = read_counts(header, streams), read_codes(header, *next(streams))
    corrections = read_corrections(header, streams) if header.lossless else None
    decoder = exact_copy(model) if header.lossless else model
    batches = batches_of(counts, codes, batch_size, progress)
    decoded = Patches.join([decode_blocks(decoder, *batch) for batch in batches])
    data = decoded.data if corrections is None else correct_patches(decoded, *corrections)
    return data.tobytes()


def decode_exactly(
    model: HierarchicalAutoencoder, header: ByteCodecHeader, body: bytes, batch_size: int, progress: Progress
) -> bytes:
    """The original of a file of version 2 or 3, which has its own `batch_size`."""
    from .exact_codec import decode_batches, new_matches, read_words  # needs constriction

    streams = split_streams(header, body)
    counts, (stored, form) = read_counts(header, streams), next(streams)
    for_codes = read_words(stored) if form == CODED else None
    unknown = np.broadcast_to(np.int64(0), (header.num_patches, header.num_quantizers))
    codes = read_codes(header, stored, form) if for_codes is None else unknown
    for_bytes = read_words(next(streams)[0])
    batches = (code_rows(*batch) for batch in batches_of(counts, codes, header.batch_size, progress))
    matches = new_matches(model, LARGEST_SHARE * (header.version > 2))
    return decode_batches(model, batches, for_codes, for_bytes, matches)


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


def read_counts(header: ByteCodecHeader, streams: Iterator[tuple[bytes, str]]) -> np.ndarray:
    """Patches of all blocks, `(blocks,)`."""
    counts = read_stream(*next(streams), header.block_size + 1, header.num_blocks)
    check_counts(header, counts)
    return counts


def read_codes(header: ByteCodecHeader, stored: bytes, form: str) -> np.ndarray:
    """All codes, `(patches, num_quantizers)`, of a stream that is not coded."""
    return read_stream(stored, form, header.codebook_size, header.num_codes).reshape(header.num_quantizers, -1).T


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
