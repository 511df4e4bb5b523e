"""A lossless compressor of any bytes whose numbers are whole: every machine decodes what any other encoded.

It is `codec` with another program that predicts: the streams of a file are read side by side by an [`IntegerGRU`],
which begins every one as if a line had just ended, and [`Matches`] raise what stood before in any stream. Encoder and
decoder compute the same whole numbers, so nothing is rounded that could be rounded otherwise, and no byte needs a tie.
What the encoder knows beforehand it reads in pieces of many bytes, where the decoder reads one. Bytes that this makes
no smaller, as those of a compressed file, are stored as they are.

The range coder normalises the weights of 256 bytes in float64: a sum of whole numbers below 2**53, which is exact, one
division, and one product for each byte, none of which may be fused or ordered otherwise.
"""

import hashlib
from collections.abc import Iterator

import constriction
import numpy as np
import torch

from ..files.coded_file import (
    LANGUAGE_MODEL_MAGIC,
    CodedFileError,
    check_original,
    check_weights,
    naming,
    require,
    write_parts,
)
from ..files.identity import weights_hash
from .codec import (
    CODED_BY,
    MAX_STREAMS_ASKED,
    OTHER_BYTES,
    SPARE_BITS,
    VERSION,
    WORD_BITS,
    ByteLMHeader,
    Progress,
    cut_streams,
    decode_symbols,
    least_bits,
    read_file,
    rows_at,
)
from .integer_gru import IntegerGRU
from .integer_matches import Matches
from .modeling_gru_byte import GRUByteForCausalLM


# In the header: how the bytes are coded.
MODEL_TYPES = MODEL_TYPE, STORED = "integer_gru_byte", "stored"
FIRST_INPUT = ord("\n")  # what every stream goes on from
PIECE = 512  # bytes of all streams that an encoder reads at once: what becomes of them stays in the cache
# A stream costs the context that it lacks at its beginning: one per 512 bytes up to 128, then one per 2 KiB.
STREAM_BYTES, FEW_STREAMS, LONG_STREAM_BYTES, MAX_STREAMS = 2**9, 128, 2**11, 256


def default_streams(num_bytes: int) -> int:
    few = min(num_bytes // STREAM_BYTES, FEW_STREAMS)
    return min(max(1, few, num_bytes // LONG_STREAM_BYTES), MAX_STREAMS)


def known_weights(model: IntegerGRU, streams: torch.Tensor, progress: Progress) -> Iterator[np.ndarray]:
    """For every column of known `streams` `(num_streams, num_steps)`, the weights `(num_streams, 256)` of bytes."""
    reader = model.reader(len(streams))
    inputs = torch.cat([torch.full_like(streams[:, :1], FIRST_INPUT), streams[:, :-1]], dim=1)
    steps = max(1, PIECE // len(streams))
    for start in progress(range(0, streams.shape[1], steps)):
        yield from reader.read(inputs[:, start : start + steps])


def encode_streams(
    model: IntegerGRU, streams: torch.ByteTensor, num_bytes: int, progress: Progress
) -> tuple[np.ndarray, float]:
    """The words of the range coder, and the sum of -log2 p over all bytes."""
    encoder, matches, bits = constriction.stream.queue.RangeEncoder(), Matches(*streams.shape), 0.0
    columns = np.ascontiguousarray(streams.numpy().T)  # (num_steps, num_streams)
    for step, (symbols, weights) in enumerate(zip(columns, known_weights(model, streams, progress), strict=True)):
        rows = rows_at(step, streams, num_bytes)
        symbols, weights = symbols[:rows], weights[:rows].astype(np.float64)
        matches.adjust(weights)
        encoder.encode(symbols.astype(np.int32), CODED_BY, weights)
        bits += ideal_bits(weights, symbols)
        matches.read(symbols)
    return encoder.get_compressed(), bits


def ideal_bits(weights: np.ndarray, symbols: np.ndarray) -> float:
    return float(np.log2(weights.sum(axis=1) / weights[np.arange(len(symbols)), symbols]).sum())


def decode_streams(model: IntegerGRU, header: ByteLMHeader, words: np.ndarray, progress: Progress) -> np.ndarray:
    """
    The streams `(num_streams, num_steps)` that `encode_streams` encoded.

    Raises:
        CodedFileError: where the words make no sense, or what was decoded costs more bits than they have.
    """
    decoder, num_rows = constriction.stream.queue.RangeDecoder(words), min(header.num_streams, header.num_bytes)
    streams = torch.zeros(num_rows, header.num_steps, dtype=torch.uint8)
    reader, matches = model.reader(num_rows), Matches(num_rows, header.num_steps)
    before = torch.full((num_rows,), FIRST_INPUT, dtype=torch.uint8)
    bits = float(WORD_BITS * len(words) + SPARE_BITS)
    for step in progress(range(header.num_steps)):
        rows = len(range(step, header.num_bytes, header.num_steps))  # the last streams are the short ones
        weights = reader.read(before[:, None])[0, :rows].astype(np.float64)
        matches.adjust(weights)
        symbols = decode_symbols(decoder, weights)
        bits -= least_bits(weights, symbols)
        if bits < 0:
            raise CodedFileError(OTHER_BYTES)
        matches.read(symbols)
        streams[:rows, step] = torch.from_numpy(symbols)
        before = streams[:, step]
    return streams.numpy()


def resolve_streams(num_streams: int | None, num_bytes: int) -> int:
    if num_streams is None:
        return default_streams(num_bytes)
    if not isinstance(num_streams, int) or not 1 <= num_streams <= MAX_STREAMS_ASKED:
        raise ValueError(f"`num_streams` must be an integer from 1 to {MAX_STREAMS_ASKED}, got {num_streams!r}.")
    return num_streams


def compress_integers(
    model: GRUByteForCausalLM, data: bytes, num_streams: int | None = None, progress: Progress = iter
) -> bytes:
    """
    Compresses bytes of any kind and number to a file, from which [`decompress_integers`] restores every bit on any
    machine.

    Args:
        model (`GRUByteForCausalLM`): A trained one, of which an [`IntegerGRU`] is made; it is left as it is.
        data (`bytes`): What is compressed.
        num_streams (`int`, *optional*): Parts that are read side by side: more are faster, fewer make a smaller file.
            By default one per 512 bytes up to 128, then one per 2,048 bytes up to 256.
        progress (`Callable`, *optional*): Wraps a range over pieces of the streams, as `tqdm.tqdm` does.

    Returns:
        `bytes`: The file.

    Raises:
        ValueError: for arguments of another type or out of range, and a model that `IntegerGRU` refuses.
    """
    if not isinstance(data, bytes | bytearray):
        raise ValueError(f"`data` must be bytes, got {type(data).__name__}.")
    num_streams = resolve_streams(num_streams, len(data))
    kind, (body, bits) = MODEL_TYPE, encode(IntegerGRU(model), bytes(data), num_streams, progress)
    if len(body) >= len(data):
        kind, num_streams, body, bits = STORED, 1, whole_words(data), 8.0 * len(data)
    header = ByteLMHeader(
        model_type=kind,
        model_hash=weights_hash(model),
        sha256=hashlib.sha256(data).hexdigest(),
        num_bytes=len(data),
        num_streams=num_streams,
        window=0,
        num_ties=0,
        ideal_bits=bits,
    )
    return write_parts(LANGUAGE_MODEL_MAGIC, VERSION, header.pack(), body)


def encode(model: IntegerGRU, data: bytes, num_streams: int, progress: Progress) -> tuple[bytes, float]:
    """The body of the file, and the sum of -log2 p over all bytes."""
    if not data:
        return b"", 0.0
    words, bits = encode_streams(model, cut_streams(data, num_streams), len(data), progress)
    return words.astype("<u4").tobytes(), bits


def whole_words(data: bytes) -> bytes:
    return bytes(data).ljust(-(-len(data) // 4) * 4, b"\0")


def decompress_integers(
    model: GRUByteForCausalLM, blob: bytes, progress: Progress = iter, name: str = "The file"
) -> bytes:
    """
    The bytes that [`compress_integers`] compressed.

    Args:
        model (`GRUByteForCausalLM`): With the weights that made the file; it is left as it is.
        blob (`bytes`): The file.
        progress (`Callable`, *optional*): Wraps the range over the bytes of a stream, as `tqdm.tqdm` does.
        name (`str`, *optional*): What errors call the file.

    Raises:
        ValueError: for arguments of another type; for what is no such file, or one that is truncated, damaged, of
            another version or made by other weights; and if it decodes to other bytes than its original.
    """
    whole = IntegerGRU(model)
    with naming(name):
        header, body = read_file(blob)
        check_kind(header)
        if header.model_type == MODEL_TYPE:
            check_weights(model, "gru_byte", header.model_hash)
            body = decode_streams(whole, header, np.frombuffer(body, "<u4").astype(np.uint32), progress).tobytes()
        data = body[: header.num_bytes]
        check_original(data, header.sha256)
        return data


def check_kind(header: ByteLMHeader):
    """Raises a `CodedFileError` for a file that this module did not write."""
    if header.model_type not in MODEL_TYPES:
        raise CodedFileError(f"was made by a {header.model_type}: it must be decompressed with that model.")
    require(header.num_ties == 0, "`num_ties` in its header must be 0", header.num_ties)
    require(header.window == 0, "`window` in its header must be 0", header.window)


__all__ = ["MODEL_TYPES", "compress_integers", "decompress_integers"]
