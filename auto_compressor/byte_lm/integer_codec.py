"""A lossless compressor of any bytes whose numbers are whole: every machine decodes what any other encoded.

It is `codec` with another program that predicts: the streams of a file are read side by side by an [`IntegerGRU`],
which begins every one as if a line had just ended, and [`Matches`] raise what stood before in any stream. Encoder and
decoder compute the same whole numbers, so nothing is rounded that could be rounded otherwise, and no byte needs a tie.
What the encoder knows beforehand it reads in pieces of many bytes, where the decoder reads one. Bytes that this makes
no smaller, as those of a compressed file, are stored as they are.

The range coder normalises the weights of 256 bytes in float64: a sum of whole numbers below 2**53, which is exact, one
division, and one product for each byte, none of which may be fused or ordered otherwise.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..files.coded_file import check_data, check_original, check_weights, naming, require
from ..lossless import codec
from ..lossless.codec import (
    Progress,
    Speed,
    Steps,
    new_header,
    resolve_num_streams,
    resolve_speed,
    rows_at,
)
from ..lossless.header import LosslessHeader, read_file, split_numbers, write_file
from ..lossless.range_coding import Decoder, Encoder
from ..lossless.vocabulary import BYTES
from .integer_gru import IntegerGRU
from .integer_matches import Matches
from .modeling_gru_byte import GRUByteForCausalLM


FIRST_INPUT = ord("\n")  # what every stream goes on from
PIECE = 512  # bytes of all streams that an encoder reads at once: what becomes of them stays in the cache
SPEEDS = {"fast": Speed(2**8, 256, 0), "normal": Speed(2**9, 128, 0), "best": Speed(2**12, 32, 0)}


def known_weights(model: IntegerGRU, streams: torch.Tensor) -> Iterator[np.ndarray]:
    """For every column of known `streams` `(num_streams, num_steps)`, the weights `(num_streams, 256)` of bytes."""
    reader = model.reader(len(streams))
    inputs = torch.cat([torch.full_like(streams[:, :1], FIRST_INPUT), streams[:, :-1]], dim=1)
    for piece in inputs.split(max(1, PIECE // len(streams)), dim=1):
        yield from reader.read(piece)


def cut_streams(data: bytes, num_streams: int) -> torch.Tensor:
    """The bytes in rows `(num_streams, num_steps)`, with zeros behind the last."""
    num_steps = -(-len(data) // num_streams)
    padded = data.ljust(num_streams * num_steps, b"\0")
    return torch.from_numpy(np.frombuffer(padded, np.uint8).reshape(num_streams, num_steps).copy())


def encode_streams(model: IntegerGRU, streams: torch.Tensor, num_bytes: int, progress: Progress) -> Encoder:
    """Codes the bytes of streams `(num_streams, num_steps)`."""
    encoder, matches, num_steps = Encoder(), Matches(*streams.shape), streams.shape[1]
    columns = np.ascontiguousarray(streams.numpy().T)  # (num_steps, num_streams)
    steps = progress(Steps(num_steps, num_bytes, encoder))
    for step, symbols, weights in zip(steps, columns, known_weights(model, streams), strict=False):
        rows = rows_at(step, num_steps, num_bytes)
        symbols, weights = symbols[:rows], weights[:rows]
        matches.adjust(weights)
        encoder.encode(symbols.astype(np.int32), weights)
        encoder.bits += ideal_bits(weights, symbols)
        matches.read_bytes(symbols)
    return encoder


def ideal_bits(weights: np.ndarray, symbols: np.ndarray) -> float:
    return float(np.log2(weights.sum(axis=1) / weights[np.arange(len(symbols)), symbols]).sum())


def decode_streams(model: IntegerGRU, header: LosslessHeader, words: np.ndarray, progress: Progress) -> np.ndarray:
    """
    The streams `(num_streams, num_steps)` that `encode_streams` encoded.

    Raises:
        CodedFileError: where the words make no sense, or what was decoded costs more bits than they have.
    """
    decoder, num_rows = Decoder(words, np.zeros(0, np.int64)), min(header.num_streams, header.num_bytes)
    streams = torch.zeros(num_rows, header.num_steps, dtype=torch.uint8)
    reader, matches = model.reader(num_rows), Matches(num_rows, header.num_steps)
    before = torch.full((num_rows,), FIRST_INPUT, dtype=torch.uint8)
    for step in progress(Steps(header.num_steps, header.num_bytes, decoder)):
        rows = rows_at(step, header.num_steps, header.num_bytes)
        weights = reader.read(before[:, None])[0, :rows]
        matches.adjust(weights)
        symbols = decoder.decode(weights)
        decoder.bits += ideal_bits(weights, symbols)
        matches.read_bytes(symbols)
        streams[:rows, step] = torch.from_numpy(symbols)
        before = streams[:, step]
    return streams.numpy()


def compress_bytes(
    model: GRUByteForCausalLM,
    data: bytes,
    num_streams: int | None = None,
    window: int | None = None,
    progress: Progress = iter,
    tokenizer: PreTrainedTokenizerBase | None = None,
    speed: str = "normal",
) -> bytes:
    """
    Compresses bytes of any kind and number to a file, from which [`decompress_bytes`] restores every bit on any
    machine.

    Args:
        model (`GRUByteForCausalLM`): A trained one, of which an [`IntegerGRU`] is made; it is left as it is.
        data (`bytes`): What is compressed.
        num_streams (`int`, *optional*): Parts that are read side by side: more are faster, fewer make a smaller file.
            By default one per 512 bytes, 128 at most.
        window (`int`, *optional*), tokenizer (`PreTrainedTokenizerBase`, *optional*): With one of them, the file is
            that of [`~lossless.codec.compress_bytes`], in float64.
        progress (`Callable`, *optional*): Wraps the steps over the bytes of a stream, as `tqdm.tqdm` does.
        speed (`str`, defaults to `"normal"`): `"fast"`, `"normal"` or `"best"`, which sets the default of
            `num_streams`.

    Returns:
        `bytes`: The file.

    Raises:
        ValueError: for arguments of another type or out of range, and a model that `IntegerGRU` refuses.
    """
    if window is not None or tokenizer is not None:
        return codec.compress_bytes(model, data, num_streams, window, progress, tokenizer, speed)
    check_data(data)
    num_streams = resolve_num_streams(num_streams, len(data), resolve_speed(speed, SPEEDS))
    kind, (words, bits) = "integers", encode(IntegerGRU(model), bytes(data), num_streams, progress)
    if words.nbytes >= len(data):
        kind, num_streams, words, bits = "stored", 1, whole_words(data), 8.0 * len(data)
    header = new_header(model, data, BYTES, num_streams, num_symbols=len(data), window=0)
    return write_file(replace(header, ideal_bits=bits, coder=kind), [], words)


def encode(model: IntegerGRU, data: bytes, num_streams: int, progress: Progress) -> tuple[np.ndarray, float]:
    """The words of the range coder, and the sum of -log2 p over all bytes."""
    if not data:
        return np.zeros(0, np.uint32), 0.0
    encoder = encode_streams(model, cut_streams(data, num_streams), len(data), progress)
    return encoder.words, encoder.bits


def whole_words(data: bytes) -> np.ndarray:
    """Bytes as words of 4, with zeros behind the last."""
    return np.frombuffer(bytes(data).ljust(-(-len(data) // 4) * 4, b"\0"), "<u4")


def decompress_bytes(
    model: GRUByteForCausalLM,
    blob: bytes,
    progress: Progress = iter,
    name: str = "The file",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> bytes:
    """
    The bytes that [`compress_bytes`] compressed, or [`~lossless.codec.compress_bytes`] with the same model.

    Args:
        model (`GRUByteForCausalLM`): With the weights that made the file; it is left as it is.
        blob (`bytes`): The file.
        progress (`Callable`, *optional*): Wraps the steps over the bytes of a stream, as `tqdm.tqdm` does.
        name (`str`, *optional*): What errors call the file.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): As for [`~lossless.codec.decompress_bytes`].

    Raises:
        ValueError: for arguments of another type; for what is no such file, or one that is truncated, damaged, of
            another version or made by other weights; and if it decodes to other bytes than its original.
    """
    if not isinstance(model, GRUByteForCausalLM):
        return codec.decompress_bytes(model, blob, progress, name, tokenizer)
    with naming(name):
        header, body = read_file(blob)
        if header.coder == "float64":
            return codec.decompress_bytes(model, blob, progress, name, tokenizer)
        require(header.num_ties == 0, "`num_ties` in its header must be 0", header.num_ties)
        require(header.num_symbols == header.num_bytes, "its symbols must be its bytes", header.num_symbols)
        if header.coder == "integers":
            check_weights(model, header.model_type, header.model_hash)
            words = split_numbers(header, body)[1]
            body = decode_streams(IntegerGRU(model), header, words, progress).tobytes()
        data = body[: header.num_bytes]
        check_original(data, header.sha256)
        return data


__all__ = ["compress_bytes", "decompress_bytes"]
