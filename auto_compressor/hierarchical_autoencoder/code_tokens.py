"""Codes as tokens of a vocabulary: what predicts them, and how they are joined to rows.

The tokens of several codebooks are numbered one codebook after the other; the codes of a segment are as many tokens in
turn, one of each codebook. Bytes are the tokens of a single codebook.
"""

import torch

from .tensors import at_least_float32


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of the distribution of `(..., vocab_size)` logits."""
    log_probs = at_least_float32(logits).log_softmax(dim=-1)  # (..., vocab)
    return -(log_probs.exp() * log_probs).sum(dim=-1)


def keep_codebook(logits: torch.Tensor, which: torch.Tensor, codebook_size: int, num_codebooks: int) -> torch.Tensor:
    """Makes the tokens of all codebooks but `which` impossible.

    Args:
        logits (`torch.Tensor` of shape `(..., vocab_size)`): Logits of the tokens `codebook * codebook_size + code`;
            those behind the codebooks count to the first one.
        which (`torch.LongTensor` of shape `(...)`): The codebook that is due.
    """
    codebooks = torch.arange(logits.shape[-1], device=logits.device) // codebook_size % num_codebooks  # (vocab,)
    return logits.masked_fill(codebooks != which[..., None], torch.finfo(logits.dtype).min)


def tokens_from_codes(codes: torch.Tensor, codebook_size: int) -> torch.LongTensor:
    """Returns `(batch_size, patches * num_quantizers)` tokens for codes `(batch_size, patches, num_quantizers)`; where
    there is no code (-1), the first token."""
    offsets = torch.arange(codes.shape[-1], device=codes.device) * codebook_size  # (quantizers,)
    return (codes + offsets).masked_fill(codes < 0, 0).flatten(1)


def codes_from_tokens(tokens: torch.Tensor, codebook_size: int, num_quantizers: int) -> torch.LongTensor:
    """The inverse of `tokens_from_codes`, whatever token stands in front of a code."""
    return tokens.unflatten(1, (-1, num_quantizers)) % codebook_size


def symbol_positions(positions: torch.Tensor, symbols_per_unit: int) -> torch.LongTensor:
    """Places of symbols within segments, `(batch_size, units * symbols_per_unit)`, from those of units."""
    within = torch.arange(symbols_per_unit, device=positions.device)  # (symbols_per_unit,)
    return (positions[..., None] * symbols_per_unit + within).flatten(1)


class Likeliest:
    """How a `CodeExpander` chooses what it generates: the likeliest symbol, and an end if it is likelier than not."""

    def symbols(self, rows: torch.Tensor, step: int, logits: torch.Tensor) -> torch.Tensor:
        """Symbols `(rows,)` at a place of these segments, from logits `(rows, vocab_size)`."""
        return logits.argmax(dim=-1)

    def ends(self, rows: torch.Tensor, length: int, logits: torch.Tensor) -> torch.Tensor:
        """Whether these segments end after so many units, from logits `(rows,)`."""
        return logits > 0


def pack_segments(
    symbols: torch.Tensor, lengths: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.LongTensor, torch.BoolTensor]:
    """
    Joins segments to rows.

    Args:
        symbols (`torch.LongTensor` of shape `(segments, max_units, size)`): What the units are; the first ones count.
        lengths (`torch.LongTensor` of shape `(segments,)`): Lengths of the segments, in units.
        mask (`torch.BoolTensor` of shape `(batch_size, patches)`): Which patches of which row the segments are, in
            turn.

    Returns:
        `tuple`: Units `(batch_size, units, size)`, 0 behind the last of a row, and their mask
        `(batch_size, units)`.
    """
    present = torch.arange(symbols.shape[1], device=symbols.device) < lengths[:, None]  # (segments, max_units)
    row_lengths = torch.zeros(mask.shape, dtype=lengths.dtype, device=lengths.device)  # (batch, patches)
    row_lengths[mask] = lengths
    row_lengths = row_lengths.sum(dim=1)  # (batch,), in units
    longest = int(row_lengths.max()) if row_lengths.numel() else 0
    unit_mask = torch.arange(longest, device=symbols.device) < row_lengths[:, None]  # (batch, units)
    units = symbols.new_zeros(*unit_mask.shape, symbols.shape[2])  # (batch, units, size)
    # Both masks are read row by row: the units of a row are those of its segments in turn.
    units[unit_mask] = symbols[present]
    return units, unit_mask


def cut_segments(units: torch.Tensor, mask: torch.Tensor, lengths: torch.Tensor, longest: int) -> torch.Tensor:
    """
    The inverse of `pack_segments`.

    Args:
        units (`torch.LongTensor` of shape `(batch_size, units, size)`): What the rows are made of.
        mask (`torch.BoolTensor` of shape `(batch_size, units)`): Which of them are there.
        lengths (`torch.LongTensor` of shape `(segments,)`): Units of each segment, row by row.
        longest (`int`): Most units of a segment.

    Returns:
        `torch.LongTensor` of shape `(segments, longest, size)`: 0 behind the last unit of a segment.
    """
    present = torch.arange(longest, device=units.device) < lengths[:, None]  # (segments, longest)
    segments = units.new_zeros(*present.shape, units.shape[2])
    segments[present] = units[mask]
    return segments


__all__ = [
    "Likeliest",
    "codes_from_tokens",
    "cut_segments",
    "entropy",
    "keep_codebook",
    "pack_segments",
    "symbol_positions",
    "tokens_from_codes",
]
