"""Blocks of bytes under the distributions of a [`HierarchicalAutoencoder`]: codes, and what is below them, exactly.

The top codes of a block cost what the language model over them says, one code after the other, mixed with what
followed the same codes before, in any block ([`Matches`]; not in files of version 2). Below, every level
costs what its expander says: symbols, and flags that end segments, each from the true codes and the true symbols
before it in its segment. All blocks of a batch, and then all its segments, are coded side by side.

Encoder and decoder run one program ([`code_codes`], [`code_bytes`]) on a float64 copy of the model, with the same
shapes in the same order, so that both see the same numbers: [`~lossless.codec`] says why, and what happens elsewhere.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import DynamicCache

from ..files.coded_file import CodedFileError, exact_copy, require
from ..lossless.matches import LARGEST_SHARE, Matches
from ..lossless.range_coding import OTHER_BYTES, Coder, Decoder, Encoder
from ..lossless.reading import InFloat64
from ..lossless.vocabulary import BLOCK
from .code_tokens import Likeliest, codes_from_tokens, cut_segments, tokens_from_codes
from .modeling_hierarchical_autoencoder import HierarchicalAutoencoder, rows_to_bytes


# Of every level: symbols (segments, max_symbols), and how many units each segment has, (segments,).
Segments = list[tuple[torch.Tensor, torch.Tensor]]
ORDER = 3  # codes that must be the same as before, for a match


def check_numbers(logits: torch.Tensor):
    """Raises a `ValueError` for a model whose predictions are no numbers."""
    if logits.isnan().any():
        raise ValueError("`model` must predict with numbers, it gives NaN.")


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Of logits `(..., size)`, on the CPU."""
    check_numbers(logits)
    return logits.softmax(dim=-1).cpu()


def code_symbols(coder: Coder, probs: torch.Tensor, symbols: torch.Tensor) -> torch.Tensor:
    """Codes symbols `(rows,)` by distributions `(rows, size)`; a decoder takes no notice of them, and returns its
    own."""
    size = probs.shape[1]
    found = coder.code(F.pad(probs, (0, -size % BLOCK)), symbols.cpu())  # by (rows, size up to whole blocks)
    if (found >= size).any():
        raise CodedFileError(OTHER_BYTES)
    return found.to(symbols.device)


class CodedChoice(Likeliest):
    """
    Codes what an expander generates, in place of choosing it.

    Args:
        coder (`Coder`): An encoder of what is given, or a decoder, which chooses what it finds.
        symbols (`torch.LongTensor` of shape `(segments, max_symbols)`, *optional*), lengths (`torch.LongTensor` of
            shape `(segments,)`, *optional*): What an encoder codes.
    """

    def __init__(self, coder: Coder, symbols: torch.Tensor | None = None, lengths: torch.Tensor | None = None):
        self.coder, self.true_symbols, self.true_lengths = coder, symbols, lengths

    def symbols(self, rows: torch.Tensor, step: int, logits: torch.Tensor) -> torch.Tensor:
        symbols = torch.zeros_like(rows) if self.true_symbols is None else self.true_symbols[rows, step]  # (rows,)
        return code_symbols(self.coder, probabilities(logits), symbols)

    def ends(self, rows: torch.Tensor, length: int, logits: torch.Tensor) -> torch.Tensor:
        both = torch.stack([torch.zeros_like(logits), logits], dim=-1)  # (rows, 2): goes on, ends
        flags = torch.zeros_like(rows) if self.true_lengths is None else (self.true_lengths[rows] == length).long()
        return self.coder.code_digits(probabilities(both), flags.cpu()).bool().to(logits.device)


def new_matches(model: HierarchicalAutoencoder, largest_share: float = LARGEST_SHARE) -> Matches:
    """What expects the codes of a file from its beginning."""
    return Matches(model.code_sequence.config.vocab_size, ORDER, largest_share)


@torch.no_grad()
def code_codes(coder: Coder, model: HierarchicalAutoencoder, codes: torch.Tensor, matches: Matches) -> torch.Tensor:
    """
    Codes the top codes of blocks under their language model.

    Args:
        coder (`Coder`): An encoder, or a decoder.
        model (`HierarchicalAutoencoder`): In float64.
        codes (`torch.LongTensor` of shape `(blocks, patches, num_quantizers)`): -1 behind the last of a block. A
            decoder takes no notice of the others, and returns its own.
        matches (`Matches`): What has seen the codes of all blocks before, and is shown these.
    """
    sequence, depth = model.code_sequence, codes.shape[2]
    size = sequence.config.codebook_size
    tokens = tokens_from_codes(codes, size)  # (blocks, patches * quantizers)
    present = (codes >= 0).flatten(1)  # (blocks, patches * quantizers)
    previous = torch.full_like(tokens[:, :1], sequence.config.eos_token_id)  # (blocks, 1)
    cache = DynamicCache()
    matches.begin(*tokens.shape)
    for step in range(tokens.shape[1]):
        with InFloat64():
            logits = sequence(previous, cache=cache, use_cache=True).logits[:, 0, :-1]  # (blocks, vocab without end)
        rows = present[:, step]
        blocks = rows.nonzero()[:, 0].cpu().numpy()  # that have a code
        probs = matches.mix(probabilities(logits[rows]), blocks)
        tokens[rows, step] = code_symbols(coder, probs, tokens[rows, step])
        matches.learn(probs, tokens[rows, step].cpu().numpy(), blocks)
        previous = tokens[:, step : step + 1]
    return codes_from_tokens(tokens, size, depth).masked_fill(codes < 0, -1)


def code_bytes(
    coder: Coder, model: HierarchicalAutoencoder, codes: torch.Tensor, segments: Segments | None = None
) -> bytes:
    """
    Codes what is below the top codes of blocks, and returns their bytes.

    Args:
        coder, model, codes: As for [`code_codes`].
        segments (`Segments`, *optional*): What an encoder codes, as [`segments_of`] gives it.
    """
    levels = [()] * model.config.num_levels if segments is None else segments
    choices = [CodedChoice(coder, *level) for level in levels]
    output: Any = model.decode(codes.transpose(1, 2), choices=choices)
    return rows_to_bytes(output.sequences)


def segments_of(model: HierarchicalAutoencoder, input_ids: torch.Tensor, mask: torch.Tensor, output: Any) -> Segments:
    """The segments of blocks `(blocks, block_size)`, of which the model gave this [`HierarchicalEncoderOutput`]."""
    found, units, present = [], input_ids[..., None], mask.bool()  # (blocks, units, symbols_per_unit), (blocks, units)
    levels: Any = model.config.level_configs
    for level, codes, lengths in zip(levels, output.level_codes, output.patch_lengths, strict=True):
        counted = lengths[lengths > 0]  # (segments,)
        found.append((cut_segments(units, present, counted, level.max_patch_length).flatten(1), counted))
        tokens = tokens_from_codes(codes.transpose(1, 2), level.codebook_size)  # (blocks, patches * quantizers)
        units, present = tokens.unflatten(1, (-1, codes.shape[1])), lengths > 0
    return found


@torch.no_grad()
def encode_batches(
    model: HierarchicalAutoencoder, batches: Iterable[bytes]
) -> tuple[list[torch.Tensor], Encoder, Encoder]:
    """Top codes of batches of blocks, each `(blocks, patches, num_quantizers)`, what codes these under their language
    model, and what is below them."""
    exact, found, for_codes, for_bytes, matches = exact_copy(model), [], Encoder(), Encoder(), new_matches(model)
    for data in batches:
        input_ids, mask = model.blocks(data)
        output: Any = model.encode(input_ids, mask)
        found.append(output.codes.transpose(1, 2))
        code_codes(for_codes, exact, found[-1], matches)
        code_bytes(for_bytes, exact, found[-1], segments_of(model, input_ids, mask, output))
    return found, for_codes, for_bytes


def decode_batches(
    model: HierarchicalAutoencoder,
    batches: Iterable[torch.Tensor],
    for_codes: Decoder | None,
    for_bytes: Decoder,
    matches: Matches,
) -> bytes:
    """The bytes of batches of top codes, as [`encode_batches`] found them; with `for_codes` they are read from it."""
    exact, found = exact_copy(model), []
    for codes in batches:
        codes = codes.to(model.device)
        codes = codes if for_codes is None else code_codes(for_codes, exact, codes, matches)
        found.append(code_bytes(for_bytes, exact, codes))
    return b"".join(found)


def pack_words(encoder: Encoder) -> bytes:
    """What an encoder wrote, as numbers of 4 bytes: how many ties there are, their places, and the words."""
    return np.concatenate([[len(encoder.ties)], encoder.ties, encoder.words]).astype("<u4").tobytes()


def read_words(stored: bytes) -> Decoder:
    """A decoder of what [`pack_words`] packed; a `CodedFileError` for what it cannot have written."""
    require(len(stored) % 4 == 0 < len(stored), "a coded stream must be numbers of 4 bytes", len(stored))
    numbers = np.frombuffer(stored, "<u4").astype(np.uint32)
    require(numbers[0] < len(numbers), f"a coded stream must have fewer ties than {len(numbers)}", int(numbers[0]))
    ties, words = np.split(numbers[1:], [int(numbers[0])])
    ties = ties.astype(np.int64)
    require(bool((np.diff(ties) > 0).all()), "the ties of a coded stream must be places in order", ties.tolist())
    return Decoder(words, ties)


__all__ = ["decode_batches", "encode_batches", "new_matches", "pack_words", "read_words"]
