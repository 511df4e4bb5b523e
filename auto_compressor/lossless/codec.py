"""A lossless compressor of any bytes: a causal language model predicts, a range coder stores what it did not know.

The data become symbols of the model ([`Vocabulary`]), bytes where it is a model of bytes, else tokens. They are cut
into streams of equal length, which the model reads as the rows of one batch, a symbol of each at a time. A stream
begins with the token that texts begin with; where there is none, its first symbol is coded as one of equally likely
ones. Every other costs -log2 p, p as the model gives it among the symbols that stand for something, mixed with what
followed the last ones before in any stream ([`Matches`]): `ideal_bits` in all. The file adds its prefix and header
(about 115 bytes), 8 bytes of the range coder at most and what rounding costs, which is less than 0.1 % of a text.

**Why both sides see the same numbers.** Encoder and decoder run one program ([`code_streams`]): the same calls of a
float64 copy of the model, in the same order, with the same shapes, on the same symbols, as a symbol is read only after
it was predicted. Where the code of a model asks for float32, as norms and rotary embeddings do, it gets float64. On
one machine and number of threads that is equal to the last bit. Elsewhere the last bits may differ, so what symbols
are coded by are the probabilities rounded to multiples of 2**-18, and what is too close to call is coded otherwise
([`range_coding`]). Probabilities may differ by a relative 1e-11, those of a model by 5e-13, as matches learn from
them. A model that takes hard decisions may differ by more; then the SHA-256 of the original refuses the result.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..files.coded_file import CodedFileError, check_data, check_original, check_weights, exact_copy, naming, require
from ..files.identity import weights_hash
from .header import IDENTITY_DIGITS, MAX_STREAMS, LosslessHeader, read_file, read_header, split_numbers, write_file
from .matches import LARGEST_SHARE, Matches
from .range_coding import Coder, Decoder, Encoder
from .reading import distributions
from .vocabulary import BLOCK, BYTES, Vocabulary, vocabulary_of


@dataclass(frozen=True)
class Speed:
    """
    How fast a file is coded, and so how small it becomes.

    Args:
        stream_symbols (`int`): Symbols of a stream. One more stream costs the context that it lacks at its beginning.
        max_streams (`int`): Streams of a large file.
        window (`int`): Symbols of context, of a model that keeps keys and values of all.
    """

    stream_symbols: int
    max_streams: int
    window: int


TOKEN_SPEEDS = {"fast": Speed(2**9, 64, 2**9), "normal": Speed(2**11, 32, 2**10), "best": Speed(2**15, 8, 2**11)}
BYTE_SPEEDS = {"fast": Speed(2**8, 256, 2**9), "normal": Speed(2**10, 64, 2**11), "best": Speed(2**14, 16, 2**12)}
# Symbols that must be the same as before, for a match.
MATCHED_TOKENS, MATCHED_BYTES = 3, 6


class Steps:
    """
    The steps of coding, which `progress` wraps; it has a length as a range has.

    Attributes:
        num_bytes (`int`): Bytes of the original.
        bits_per_byte (`float`): What the symbols so far have cost, over their share of the bytes.
    """

    def __init__(self, num_steps: int, num_bytes: int, coder: Coder):
        self.steps, self.num_bytes, self.coder, self.done = range(num_steps), num_bytes, coder, 0

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[int]:
        for step in self.steps:
            yield step
            self.done = step + 1

    @property
    def bits_per_byte(self) -> float:
        share = self.done / max(len(self), 1)
        return self.coder.bits / max(share * self.num_bytes, 1)


Progress = Callable[[Steps], Iterable[int]]


def rows_at(step: int, num_steps: int, num_symbols: int) -> int:
    """How many streams have a symbol at this step: the first ones, as the last are the short ones."""
    return len(range(step, num_symbols, num_steps))


def empty_streams(header: LosslessHeader, vocabulary: Vocabulary) -> torch.Tensor:
    """Streams `(num_streams, num_steps)` of zeros; those without a symbol have no rows, as a header may name many."""
    rows = min(header.num_streams, max(header.num_symbols, 1))
    # NumPy's zeros take memory when they are written to: a header may claim more symbols than its words hold.
    return torch.from_numpy(np.zeros((rows, header.num_steps), np.uint8 if vocabulary.size == BLOCK else np.int32))


def check_predictions(probs: torch.Tensor, step: int):
    """Raises a `ValueError` for a model that gives NaN."""
    if probs.isnan().any():
        raise ValueError(f"`model` must predict with numbers, it gives NaN after {step} symbols.")


def code_streams(
    coder: Coder,
    model: PreTrainedModel,
    vocabulary: Vocabulary,
    streams: torch.Tensor,
    header: LosslessHeader,
    progress: Progress,
):
    """Codes streams of symbols `(rows, num_steps)`, column by column; a decoder fills them in."""
    steps, matches = progress(Steps(header.num_steps, header.num_bytes, coder)), new_matches(vocabulary, header)
    predicted = distributions(model, vocabulary, streams, header.window, header.version)
    for step, probs in zip(steps, predicted, strict=False):
        rows = slice(rows_at(step, header.num_steps, header.num_symbols))
        check_predictions(probs[rows], step)
        probs = matches.mix(probs[rows], rows)
        symbols = coder.code(probs, streams[rows, step].long())
        matches.learn(probs, symbols.numpy(), rows)
        streams[rows, step] = symbols.to(streams.dtype)


def new_matches(vocabulary: Vocabulary, header: LosslessHeader) -> Matches:
    """What expects symbols of this file from its beginning; nothing before version 3."""
    order = MATCHED_BYTES if vocabulary is BYTES else MATCHED_TOKENS
    matches = Matches(vocabulary.size, order, LARGEST_SHARE * (header.version > 2))
    matches.begin(header.num_streams, header.num_steps)
    return matches


def check_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> Vocabulary:
    """The symbols of a model; a `ValueError` for one that cannot code bytes by them."""
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"`model` must be a causal language model, got {type(model).__name__}.")
    vocab_size = getattr(model.config.get_text_config(), "vocab_size", 0)
    vocabulary = vocabulary_of(tokenizer, vocab_size)
    if vocabulary is BYTES and not BLOCK <= vocab_size < 2 * BLOCK:
        raise ValueError(
            f"Without a tokenizer, `model` must be a language model of bytes, ids 0 to 255, and few special ones: the"
            f" `vocab_size` of this {model.config.model_type} must be from {BLOCK} to {2 * BLOCK - 1}, it is"
            f" {vocab_size}."
        )
    if model.training:
        raise ValueError("`model` must be in evaluation mode, it is in training mode, which draws its dropout anew.")
    return vocabulary


def resolve_num_streams(num_streams: int | None, num_symbols: int, speed: Speed) -> int:
    if num_streams is None:
        return min(max(1, num_symbols // speed.stream_symbols), speed.max_streams)
    if not isinstance(num_streams, int) or not 1 <= num_streams <= MAX_STREAMS:
        raise ValueError(f"`num_streams` must be an integer from 1 to {MAX_STREAMS}, got {num_streams!r}.")
    return num_streams


def resolve_window(window: int | None, model: PreTrainedModel, speed: Speed) -> int:
    """0 is no window; by default that of the speed, or the context of the model if it is shorter."""
    most = getattr(model.config, "max_position_embeddings", 0) or 0
    if window is None:
        return min(most, speed.window)
    if not isinstance(window, int) or window < 2 or 0 < most < window:
        rule = f" to {most}, the `max_position_embeddings` of the model" if most else " or more"
        raise ValueError(f"`window` must be an integer from 2{rule}, got {window!r}.")
    return window


def resolve_speed(speed: str, speeds: dict[str, Speed]) -> Speed:
    if speed not in speeds:
        raise ValueError(f"`speed` must be one of {', '.join(speeds)}, got {speed!r}.")
    return speeds[speed]


def new_header(
    model: PreTrainedModel, data: bytes, vocabulary: Vocabulary, num_streams: int, num_symbols: int, window: int
) -> LosslessHeader:
    """What is known of a file before anything is coded."""
    return LosslessHeader(
        model_type=model.config.model_type,
        model_hash=weights_hash(model)[:IDENTITY_DIGITS],
        sha256=hashlib.sha256(data).hexdigest(),
        num_bytes=len(data),
        num_streams=num_streams,
        window=window,
        num_ties=0,
        ideal_bits=0.0,
        num_symbols=num_symbols,
        vocabulary_hash=vocabulary.hash[:IDENTITY_DIGITS],
    )


def compress_bytes(
    model: PreTrainedModel,
    data: bytes,
    num_streams: int | None = None,
    window: int | None = None,
    progress: Progress = iter,
    tokenizer: PreTrainedTokenizerBase | None = None,
    speed: str = "normal",
) -> bytes:
    """
    Compresses bytes of any kind and number to a file, from which [`decompress_bytes`] restores every bit with the same
    model.

    Args:
        model (`PreTrainedModel`): A causal language model in evaluation mode; it is left as it is.
        data (`bytes`): What is compressed.
        num_streams (`int`, *optional*): Parts that are read side by side, each from nothing: more are faster, fewer
            make a smaller file. By default one per 2,048 tokens, but 32 at most, or one per 1,024 bytes, but 64 at
            most.
        window (`int`, *optional*): Symbols of context that the model holds, the first few and the last ones. By
            default 1,024 tokens or 2,048 bytes, or `max_position_embeddings` if that is less; a model without, which
            has a state of fixed size, carries it through.
        progress (`Callable`, *optional*): Wraps the steps over the symbols of a stream, as `tqdm.tqdm` does.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): That of the model. Without one, ids 0 to 255 are bytes.
        speed (`str`, defaults to `"normal"`): `"fast"`, `"normal"` or `"best"`, which sets the defaults of
            `num_streams` and `window`.

    Returns:
        `bytes`: The file.

    Raises:
        ValueError: for arguments of another type or out of range, a model in training mode or one that is none of
            bytes where there is no tokenizer, and one that predicts NaN.
    """
    vocabulary = check_model(model, tokenizer)
    chosen = resolve_speed(speed, BYTE_SPEEDS if vocabulary is BYTES else TOKEN_SPEEDS)
    check_data(data)
    window = resolve_window(window, model, chosen)
    resolve_num_streams(num_streams, 0, chosen)  # refused before the work of making symbols
    symbols = torch.from_numpy(vocabulary.symbols_of(bytes(data)))
    num_streams = resolve_num_streams(num_streams, len(symbols), chosen)
    header = new_header(model, data, vocabulary, num_streams, len(symbols), window)
    streams, encoder = empty_streams(header, vocabulary), Encoder()
    streams.view(-1)[: len(symbols)] = symbols.to(streams.dtype)
    code_streams(encoder, exact_copy(model), vocabulary, streams, header, progress)
    return write_file(
        replace(header, num_ties=len(encoder.ties), ideal_bits=encoder.bits), encoder.ties, encoder.words
    )


def decompress_bytes(
    model: PreTrainedModel,
    blob: bytes,
    progress: Progress = iter,
    name: str = "The file",
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> bytes:
    """
    The bytes that [`compress_bytes`] compressed.

    Args:
        model (`PreTrainedModel`): With the weights that made the file, in evaluation mode; it is left as it is.
        blob (`bytes`): The file.
        progress (`Callable`, *optional*): Wraps the steps over the symbols of a stream, as `tqdm.tqdm` does.
        name (`str`, *optional*): What errors call the file.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): That of the model, of which the table of tokens is used.
            Without one, ids 0 to 255 are bytes.

    Raises:
        ValueError: for arguments of another type; for what is no such file, or one that is truncated, damaged, of
            another version or made by other weights or another tokenizer; and if it decodes to other bytes than its
            original.
    """
    vocabulary = check_model(model, tokenizer)
    with naming(name):
        header, body = read_file(blob)
        if header.coder != "float64":
            raise CodedFileError(f"was made by the codec of {header.model_type} ({header.coder}): use that one.")
        ties, words = split_numbers(header, body)
        check_weights(model, header.model_type, header.model_hash)
        check_vocabulary(vocabulary, header.vocabulary_hash)
        check_window(header.window, model)
        streams = empty_streams(header, vocabulary)
        code_streams(Decoder(words, ties), exact_copy(model), vocabulary, streams, header, progress)
        data = vocabulary.bytes_of(streams.view(-1)[: header.num_symbols].numpy())
        check_original(data, header.sha256)
        require(header.num_bytes == len(data), f"`num_bytes` in its header must be {len(data)}", header.num_bytes)
        return data


def check_vocabulary(vocabulary: Vocabulary, vocabulary_hash: str):
    """Raises a `CodedFileError` for another tokenizer than the one that made a file."""
    found = vocabulary.hash[:IDENTITY_DIGITS]
    if vocabulary_hash != found:
        raise CodedFileError(
            f"was made with the vocabulary {vocabulary_hash}, `tokenizer` has {found}: tokens mean something only in"
            " the vocabulary that made them."
        )


def check_window(window: int, model: PreTrainedModel):
    """Raises a `CodedFileError` for a window that the model cannot have compressed with."""
    most = getattr(model.config, "max_position_embeddings", 0) or 0
    if most:
        rule = f"`window` in its header must be from 2 to {most}, the context of the model"
        require(2 <= window <= most, rule, window)


__all__ = ["LosslessHeader", "Steps", "compress_bytes", "decompress_bytes", "read_header"]
