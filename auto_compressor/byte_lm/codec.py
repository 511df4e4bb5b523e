"""A lossless compressor of any bytes: a language model of bytes predicts, a range coder stores what it did not know.

The data are cut into streams of equal length, which the model reads as the rows of one batch, a byte of each at a
time. The first byte of a stream is coded as one of 256 equally likely ones, every other by the model's distribution,
without its special tokens and normalised again: the length in the header says where the data end. So all bytes of a
file cost `ideal_bits`, the sum of -log2 p, which is never more than 8 bits per stream and the model's own
cross-entropy of the rest. The file adds its prefix and header (about 130 bytes), 8 bytes of the range coder at most
and what rounding costs, which is less than 0.1 % of a text.

**Why both sides see the same numbers.** [`predictions`] is the program of both: the same calls of a float64 copy of
the model, in the same order, with the same shapes, on the same bytes, as it reads a byte only after it predicted it.
On one machine and number of threads that is equal to the last bit. Elsewhere the last bits may differ, so what bytes
are coded by are the probabilities rounded to multiples of 2**-18, which are the same on both sides unless one lies on
the border between two. The encoder sees this coming: where a probability is closer to such a border than a relative
1e-11, a thousand times what float64 loses on the way, the byte is coded as the first one is, and the file says so (5
such bytes in a million). That is no promise: a model that computes in part in float32, as the norms of Llama do, or
takes hard decisions may differ by more. Then the SHA-256 of the original refuses the result.
"""

import hashlib
import math
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import constriction
import numpy as np
import torch
from transformers import PreTrainedModel

from ..files.coded_file import (
    LANGUAGE_MODEL_MAGIC,
    OTHER_ROUNDING,
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
from .cache_names import as_cache, cache_of


MAGIC = LANGUAGE_MODEL_MAGIC
VERSION = 1
FIELDS = struct.Struct("<32s32sQIIId")
Progress = Callable[[range], Iterable[int]]

NUM_COUNTS = 2**18  # a distribution is rounded to so many parts
TIE_MARGIN = 1e-11
# A stream costs the context that it lacks at its beginning, about 25 bits: one per KiB is 1 % of a text at most.
STREAM_BYTES, MAX_STREAMS = 2**10, 64
OTHER_BYTES = f"decodes to other bytes than its original: {OTHER_ROUNDING}."
MAX_STREAMS_ASKED = 2**16 - 1
WORD_BITS, SPARE_BITS = 32, 64  # the range coder may leave so many bits unwritten
MIN_BITS = 1e-5  # that a byte costs at least: half of what is left when all other bytes keep their codes of 24 bits
# A code of 24 bits is kept for every byte, however unlikely; floats that sum to anything are taken as they are.
CODED_BY = constriction.stream.model.Categorical(perfect=False)


@dataclass(frozen=True)
class ByteLMHeader:
    """
    What a file says about itself.

    Args:
        model_type (`str`), model_hash (`str`): The model that made it, see [`~identity.weights_hash`].
        sha256 (`str`), num_bytes (`int`): SHA-256 and length of the original.
        num_streams (`int`): Rows of the batch that predicts.
        window (`int`): Bytes after which the model starts again from the last half of them; 0 if it never does.
        num_ties (`int`): Bytes that were coded as equally likely ones because rounding was too close to call.
        ideal_bits (`float`): Sum of -log2 p over all bytes, p as the model gave it.
    """

    model_type: str
    model_hash: str
    sha256: str
    num_bytes: int
    num_streams: int
    window: int
    num_ties: int
    ideal_bits: float

    @property
    def num_steps(self) -> int:
        """Bytes of a stream; the last streams may have fewer, or none."""
        return -(-self.num_bytes // self.num_streams)

    @property
    def bits_per_byte(self) -> float:
        """What the model needs, without what the file adds; NaN if there are no bytes."""
        return self.ideal_bits / self.num_bytes if self.num_bytes else math.nan

    def pack(self) -> bytes:
        hashes = bytes.fromhex(self.model_hash), bytes.fromhex(self.sha256)
        numbers = self.num_bytes, self.num_streams, self.window, self.num_ties, self.ideal_bits
        return FIELDS.pack(*hashes, *numbers) + self.model_type.encode()

    @classmethod
    def unpack(cls, packed: bytes) -> "ByteLMHeader":
        require(len(packed) >= FIELDS.size, f"its header must have {FIELDS.size} bytes or more", len(packed))
        model_hash, sha256, *numbers = FIELDS.unpack_from(packed)
        model_type = packed[FIELDS.size :].decode(errors="replace")
        return cls(model_type, model_hash.hex(), sha256.hex(), *numbers)

    def check(self, body_length: int):
        """Raises a `CodedFileError` for counts that do not go together, or not with the length of what follows."""
        check_origin(self.model_type)
        in_range = 1 <= self.num_streams <= MAX_STREAMS_ASKED
        require(in_range, f"`num_streams` in its header must be from 1 to {MAX_STREAMS_ASKED}", self.num_streams)
        require(self.window != 1, "`window` in its header must be 0, or 2 or more", self.window)
        is_cost = math.isfinite(self.ideal_bits) and self.ideal_bits >= 0
        require(is_cost, "`ideal_bits` in its header must be 0 or more, and finite", self.ideal_bits)
        require(body_length % 4 == 0, "what follows its header must be words of 4 bytes", body_length)
        most = min(self.num_bytes, body_length // 8)
        require(self.num_ties <= most, f"`num_ties` in its header must be {most} at most", self.num_ties)
        self.check_cost(8 * body_length - 64 * self.num_ties + SPARE_BITS)

    def check_cost(self, bits: int):
        """Raises a `CodedFileError` for more bytes than so many bits can stand for: each costs something, and the
        first of a stream 8 bits."""
        firsts = min(self.num_bytes, self.num_streams)
        most = int(bits / MIN_BITS)
        require(self.num_bytes <= most, f"`num_bytes` in its header must be {most} at most", self.num_bytes)
        require(8 * firsts <= bits, f"`num_streams` in its header must be {bits // 8} at most", firsts)


@torch.no_grad()
def predictions(model: PreTrainedModel, streams: torch.ByteTensor, window: int) -> Iterator[torch.DoubleTensor]:
    """
    Distributions over the bytes of every column of `streams` `(num_streams, num_steps)`, each `(num_streams, 256)`.

    A column is read after its own distribution was taken, so a decoder fills it in between. A model of limited context
    starts again every half `window`, from the bytes of the last half.
    """
    yield torch.full((streams.shape[0], NUM_BYTES), 1 / NUM_BYTES, dtype=torch.double)
    cache, first, read = None, 0, 0
    for end in range(1, streams.shape[1]):
        if window and end - first > window:
            cache, first, read = None, end - window // 2, end - window // 2
        input_ids = streams[:, read:end].long().to(model.device)
        output = model(input_ids, **as_cache(cache), use_cache=True, logits_to_keep=1)
        cache, read = cache_of(output), end
        yield output.logits[:, -1, :NUM_BYTES].double().softmax(dim=-1).cpu()


def find_ties(probs: torch.DoubleTensor) -> list[int]:
    """The rows of `(rows, 256)` where another machine might round one of the probabilities to another count."""
    parts = probs * NUM_COUNTS
    return ((parts.frac() - 0.5).abs() < TIE_MARGIN * parts).any(dim=1).nonzero()[:, 0].tolist()


def round_to_counts(probs: torch.DoubleTensor, ties: list[int]) -> np.ndarray:
    """
    What rows of bytes are coded by: whole numbers in the ratio of their probabilities, in `ties` all the same.

    The rows lie one behind the other in memory, which constriction takes for granted.
    """
    counts = (probs * NUM_COUNTS + 0.5).floor()
    counts[ties] = 1.0
    return np.ascontiguousarray(counts.numpy())


def least_bits(counts: np.ndarray, symbols: np.ndarray) -> float:
    """What rows of bytes cost at least, coded by their counts; a code of 24 bits may make a likely one cheaper."""
    likely = np.take_along_axis(counts, symbols[:, None].astype(np.int64), 1)[:, 0] / counts.sum(axis=1)
    return float(-np.log2(np.minimum(likely + 2**-14, 1)).sum())


def rows_at(step: int, streams: torch.ByteTensor, num_bytes: int) -> int:
    """How many streams have a byte at this step: the first ones, as the last are the short ones."""
    return len(range(step, num_bytes, streams.shape[1]))


def cut_streams(data: bytes, num_streams: int) -> torch.ByteTensor:
    """The bytes in rows `(num_streams, num_steps)`, with zeros behind the last."""
    num_steps = -(-len(data) // num_streams)
    padded = bytes(data).ljust(num_streams * num_steps, b"\0")
    return torch.from_numpy(np.frombuffer(padded, np.uint8).reshape(num_streams, num_steps).copy())


def check_predictions(probs: torch.DoubleTensor, step: int):
    """Raises a `ValueError` for a model that gives NaN."""
    if probs.isnan().any():
        raise ValueError(f"`model` must predict with numbers, it gives NaN after {step} bytes.")


def encode_streams(
    model: PreTrainedModel, streams: torch.ByteTensor, num_bytes: int, window: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray, float]:
    """The words of the range coder, the ties as pairs of step and stream `(num_ties, 2)`, and the ideal bits."""
    encoder, ties, bits = constriction.stream.queue.RangeEncoder(), [], 0.0
    steps = progress(range(streams.shape[1]))
    for step, probs in zip(steps, predictions(model, streams, window), strict=False):
        rows = rows_at(step, streams, num_bytes)
        probs, symbols = probs[:rows], streams[:rows, step].long()
        check_predictions(probs, step)
        tied = find_ties(probs)
        encoder.encode(symbols.int().numpy(), CODED_BY, round_to_counts(probs, tied))
        ties += [(step, stream) for stream in tied]
        bits -= float(probs.gather(1, symbols[:, None]).log2().sum())
    return encoder.get_compressed(), np.array(ties, "<u4").reshape(-1, 2), bits


def decode_streams(
    model: PreTrainedModel, header: ByteLMHeader, words: np.ndarray, ties: np.ndarray, progress: Progress
) -> torch.ByteTensor:
    """
    The streams `(num_streams, num_steps)` that `encode_streams` encoded; where this model predicts otherwise, other
    bytes.

    Raises:
        CodedFileError: where the words make no sense, or what was decoded costs more bits than they have.
    """
    decoder, tied = constriction.stream.queue.RangeDecoder(words), defaultdict(list)
    for step, stream in ties.tolist():
        tied[step].append(stream)
    # Streams without a byte have no rows: a header may name many.
    num_rows = min(header.num_streams, max(header.num_bytes, 1))
    streams = torch.zeros(num_rows, header.num_steps, dtype=torch.uint8)
    bits, steps = WORD_BITS * len(words) + SPARE_BITS, progress(range(header.num_steps))
    for step, probs in zip(steps, predictions(model, streams, header.window), strict=False):
        rows = rows_at(step, streams, header.num_bytes)
        check_predictions(probs[:rows], step)
        counts = round_to_counts(probs[:rows], tied[step])
        symbols = decode_symbols(decoder, counts)
        bits -= least_bits(counts, symbols)
        if bits < 0:
            raise CodedFileError(OTHER_BYTES)
        streams[:rows, step] = torch.from_numpy(symbols).to(torch.uint8)
    return streams


def decode_symbols(decoder: constriction.stream.queue.RangeDecoder, counts: np.ndarray) -> np.ndarray:
    try:
        return decoder.decode(CODED_BY, counts)
    except AssertionError as error:  # that of constriction for words which these distributions cannot have made
        raise CodedFileError(OTHER_BYTES) from error


def check_model(model: PreTrainedModel):
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"`model` must be a language model of bytes, got {type(model).__name__}.")
    vocab_size = getattr(model.config, "vocab_size", 0)
    if not NUM_BYTES <= vocab_size < 2 * NUM_BYTES:
        raise ValueError(
            f"`model` must be a language model of bytes, ids 0 to 255, and few special ones: the `vocab_size` of this"
            f" {model.config.model_type} must be from {NUM_BYTES} to {2 * NUM_BYTES - 1}, it is {vocab_size}."
        )
    if model.training:
        raise ValueError("`model` must be in evaluation mode, it is in training mode, which draws its dropout anew.")


def resolve_num_streams(num_streams: int | None, num_bytes: int) -> int:
    if num_streams is None:
        return min(max(1, num_bytes // STREAM_BYTES), MAX_STREAMS)
    if not isinstance(num_streams, int) or not 1 <= num_streams <= MAX_STREAMS_ASKED:
        raise ValueError(f"`num_streams` must be an integer from 1 to {MAX_STREAMS_ASKED}, got {num_streams!r}.")
    return num_streams


def resolve_window(window: int | None, model: PreTrainedModel) -> int:
    """0 is no window; by default the context that the model has, if it has one."""
    most = getattr(model.config, "max_position_embeddings", 0)
    if window is None:
        return most
    if not isinstance(window, int) or window < 2 or 0 < most < window:
        most = f" to {most}, the `max_position_embeddings` of the model" if most else " or more"
        raise ValueError(f"`window` must be an integer from 2{most}, got {window!r}.")
    return window


def compress_bytes(
    model: PreTrainedModel,
    data: bytes,
    num_streams: int | None = None,
    window: int | None = None,
    progress: Progress = iter,
) -> bytes:
    """
    Compresses bytes of any kind and number to a file, from which [`decompress_bytes`] restores every bit with the same
    model.

    Args:
        model (`PreTrainedModel`): A causal language model whose ids 0 to 255 are bytes, in evaluation mode; it is left
            as it is.
        data (`bytes`): What is compressed.
        num_streams (`int`, *optional*): Parts that are read side by side, each from nothing: more are faster, fewer
            make a smaller file. By default one per 1,024 bytes, but 64 at most.
        window (`int`, *optional*): Bytes of context after which the model starts again from the last half of them. By
            default `max_position_embeddings`; a model without, which has a state of fixed size, carries it through.
        progress (`Callable`, *optional*): Wraps the range over the bytes of a stream, as `tqdm.tqdm` does.

    Returns:
        `bytes`: The file, as this module describes it.

    Raises:
        ValueError: for arguments of another type or out of range, a model in training mode or one that is none of
            bytes, and one that predicts NaN.
    """
    check_model(model)
    if not isinstance(data, bytes | bytearray):
        raise ValueError(f"`data` must be bytes, got {type(data).__name__}.")
    num_streams, window = resolve_num_streams(num_streams, len(data)), resolve_window(window, model)
    streams = cut_streams(data, num_streams)
    words, ties, bits = encode_streams(exact_copy(model), streams, len(data), window, progress)
    header = ByteLMHeader(
        model_type=model.config.model_type,
        model_hash=weights_hash(model),
        sha256=hashlib.sha256(data).hexdigest(),
        num_bytes=len(data),
        num_streams=num_streams,
        window=window,
        num_ties=len(ties),
        ideal_bits=bits,
    )
    return write_parts(MAGIC, VERSION, header.pack(), ties.tobytes() + words.astype("<u4").tobytes())


def decompress_bytes(model: PreTrainedModel, blob: bytes, progress: Progress = iter, name: str = "The file") -> bytes:
    """
    The bytes that [`compress_bytes`] compressed.

    Args:
        model (`PreTrainedModel`): With the weights that made the file, in evaluation mode; it is left as it is.
        blob (`bytes`): The file.
        progress (`Callable`, *optional*): Wraps the range over the bytes of a stream, as `tqdm.tqdm` does.
        name (`str`, *optional*): What errors call the file.

    Raises:
        ValueError: for arguments of another type; for what is no such file, or one that is truncated, damaged, of
            another version or made by other weights; and if it decodes to other bytes than its original.
    """
    check_model(model)
    with naming(name):
        header, body = read_file(blob)
        ties, words = split_numbers(header, body)
        check_weights(model, header.model_type, header.model_hash)
        check_window(header.window, model)
        streams = decode_streams(exact_copy(model), header, words, ties, progress)
        data = streams.numpy().tobytes()[: header.num_bytes]
        check_original(data, header.sha256)
        return data


def split_numbers(header: ByteLMHeader, body: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The ties `(num_ties, 2)` and the words of a body; a `CodedFileError` for ties where there are no bytes."""
    ties, words = np.split(np.frombuffer(body, "<u4").astype(np.uint32), [2 * header.num_ties])
    ties = ties.reshape(-1, 2)
    steps, streams = ties.astype(np.int64).T
    there = (steps < header.num_steps) & (streams * header.num_steps + steps < header.num_bytes)
    require(bool(there.all()), "its ties must be places of bytes", ties[~there].tolist())
    increasing = (np.diff(steps) > 0) | ((np.diff(steps) == 0) & (np.diff(streams) > 0))
    require(bool(increasing.all()), "its ties must be in the order of their places", ties.tolist())
    return ties, words


def check_window(window: int, model: PreTrainedModel):
    """Raises a `CodedFileError` for a window that the model cannot have compressed with."""
    most = getattr(model.config, "max_position_embeddings", 0)
    if most:
        rule = f"`window` in its header must be from 2 to {most}, the context of the model"
        require(2 <= window <= most, rule, window)


def read_file(blob: bytes) -> tuple[ByteLMHeader, bytes]:
    """Returns header and body, which go together; see `read_header` for the errors."""
    packed, body = read_parts(blob, MAGIC, VERSION)
    header = ByteLMHeader.unpack(packed)
    header.check(len(body))
    return header, body


def read_header(blob: bytes, name: str = "The file") -> ByteLMHeader:
    """
    What a file of [`compress_bytes`] says about itself; `name` is what errors call it.

    Raises:
        ValueError: for what is no such file, or one that is truncated, damaged or of another version.
    """
    with naming(name):
        return read_file(blob)[0]


__all__ = ["ByteLMHeader", "compress_bytes", "decompress_bytes", "read_header"]
