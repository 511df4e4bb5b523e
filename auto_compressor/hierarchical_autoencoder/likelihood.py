"""Log-likelihood of bytes under a hierarchical autoencoder: codes first, then what is below them, level by level.

    log P(text) = log P(top codes, end | their language model)
                + sum over levels from the top down of
                  log P(what is below, and where its segments end | codes of the level, expander)

**Why this is a probability.** It is that of a process which draws everything: top codes until the end of the text,
then for every code of a level the units of its segment until an end flag. Each factor is a distribution: a code over
its codebook (and the end, in front of the first codebook); a symbol over its vocabulary; an end flag over yes and no,
and at the longest length the end is certain. So the probabilities of all pairs of codes and bytes sum to one (to less
if the language model has a chance never to end). A text is scored at one pair, with the codes of its encoding.
Distinct texts are distinct pairs, so the scores of all texts sum to at most one, and each is a lower bound of
log P(text), which sums over all codes that may lead to the text. The expanders alone give no likelihood: they see
codes of the very text that they predict.

**With a context**, P(text | context) is that of what the generator does: the codes of the context, of all levels, are
those of the context read alone; a segment of every level starts behind it; the language model and the expanders go on
from the codes of the context. Hence, with that border, log P(context + text) is log P(context), without an end, plus
log P(text | context).

**Without an end**, the score is that of the event that the process makes these codes and bytes, whatever follows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .configuration_hierarchical_autoencoder import HierarchicalAutoencoderConfig
from .modeling_hierarchical_autoencoder import HierarchicalAutoencoder, check_input_ids
from .outputs import CodeExpanderOutput, SegmentCompressorOutput
from .patching import patches_before


@dataclass
class Likelihood:
    """
    Log-likelihoods of texts in nats, 0 or less.

    Args:
        codes (`torch.Tensor` of shape `(batch_size,)`): Nats of the top codes, and of the end of the text if it has
            one.
        residual (`torch.Tensor` of shape `(batch_size,)`): Nats of all levels below, each given the codes above it.
        num_bytes (`torch.LongTensor` of shape `(batch_size,)`): Bytes of each text, without special tokens.
    """

    codes: torch.Tensor
    residual: torch.Tensor
    num_bytes: torch.LongTensor

    @property
    def total(self) -> torch.Tensor:
        return self.codes + self.residual

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of all texts together, with the bits of their ends. NaN if there are no bytes."""
        num_bytes = int(self.num_bytes.sum())
        return -self.total.double().sum().item() / (math.log(2) * num_bytes) if num_bytes else math.nan


@dataclass
class UnitNats:
    """
    Where the nats of texts lie, and which of them are those of the contexts.

    Args:
        levels (`list[torch.Tensor]` of shape `(batch_size, units)`): Nats of every unit given the codes of its level,
            from bytes upwards; 0 for padding.
        codes (`torch.Tensor` of shape `(batch_size, symbols)`): Nats of the top codes, one codebook after the other,
            and of the end.
        contexts (`list[torch.LongTensor]` of shape `(batch_size,)`): How many of the units of every level, and last of
            the symbols of `codes`, are of the context.
        num_bytes (`torch.LongTensor` of shape `(batch_size,)`): Bytes of each row, those of the context too.
    """

    levels: list[torch.Tensor]
    codes: torch.Tensor
    contexts: list[torch.LongTensor]
    num_bytes: torch.LongTensor


def context_counts(model: HierarchicalAutoencoder, compressed: list, context_lengths: torch.LongTensor) -> list:
    """`UnitNats.contexts` from the bytes of the contexts."""
    counts = [context_lengths]
    for output in compressed:
        counts.append(patches_before(output.patch_lengths, counts[-1]))
    counts[-1] = counts[-1] * model.config.level_configs[-1].num_quantizers
    return counts


def check_context_lengths(context_lengths: torch.LongTensor, num_bytes: torch.LongTensor):
    if context_lengths.shape != num_bytes.shape or context_lengths.dtype != torch.long:
        raise ValueError(
            f"`context_lengths` must be int64 of the shape {tuple(num_bytes.shape)}, got {context_lengths.dtype}"
            f" {tuple(context_lengths.shape)}."
        )
    if ((context_lengths < 0) | (context_lengths > num_bytes)).any():
        raise ValueError(
            f"`context_lengths` must be from 0 to the bytes of each row, {num_bytes.tolist()}, got"
            f" {context_lengths.tolist()}."
        )


def level_nats(
    model: HierarchicalAutoencoder,
    labels: torch.LongTensor,
    compressed: list[SegmentCompressorOutput],
    expanded: list[CodeExpanderOutput],
) -> list[torch.Tensor]:
    """`UnitNats.levels`, from the bytes as `labels`, -100 at padding, and what compressors and expanders found."""
    levels = enumerate(zip(model.level_labels(labels, compressed), compressed, expanded, strict=True))
    return [model.unit_nats(level, *parts) for level, parts in levels]


@torch.no_grad()
def nats_by_unit(
    model: HierarchicalAutoencoder,
    input_ids: torch.LongTensor,
    attention_mask: torch.Tensor | None = None,
    context_lengths: torch.LongTensor | None = None,
) -> UnitNats:
    """
    Negative log-likelihood of everything that texts are made of; arguments and errors as in [`log_likelihood`].
    """
    check_input_ids(input_ids, attention_mask)
    if model.training:
        raise ValueError("`model` must be in evaluation mode, it is in training mode, which changes its codebooks.")
    symbols, mask, _ = model.read_bytes(input_ids, attention_mask)
    num_bytes = mask.sum(dim=1)
    context_lengths = torch.zeros_like(num_bytes) if context_lengths is None else context_lengths
    check_context_lengths(context_lengths, num_bytes)
    compressed = model.compress(symbols, mask, context_lengths)
    levels = level_nats(model, symbols.masked_fill(~mask, -100), compressed, model.expand(symbols, compressed))
    codes, _ = model.code_nats(compressed[-1].codes, model.text_ends(input_ids, attention_mask))
    return UnitNats(levels, codes, context_counts(model, compressed, context_lengths), num_bytes)


def sum_behind(nats: torch.Tensor, starts: torch.LongTensor) -> torch.Tensor:
    """Sums of the rows of `(batch_size, length)` from their `starts` on, `(batch_size,)`, in double precision."""
    behind = torch.arange(nats.shape[1], device=nats.device) >= starts[:, None]
    return nats.double().masked_fill(~behind, 0.0).sum(dim=1)


def log_likelihood(
    model: HierarchicalAutoencoder,
    input_ids: torch.LongTensor,
    attention_mask: torch.Tensor | None = None,
    context_lengths: torch.LongTensor | None = None,
) -> Likelihood:
    """
    Log-likelihood of each row, or of what follows its context.

    Args:
        model (`HierarchicalAutoencoder`): In evaluation mode.
        input_ids (`torch.LongTensor` of shape `(batch_size, length)`): Bytes; 256 behind them says that the text ends
            there, and the end is scored too. Other special tokens count as padding.
        attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): 0 at padding.
        context_lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): The first bytes of each row that are
            its context, on which the others are conditioned.

    Raises:
        ValueError: for arguments of another shape or dtype, contexts longer than their rows, a model in training mode.
    """
    nats = nats_by_unit(model, input_ids, attention_mask, context_lengths)
    sums = [-sum_behind(level, start) for level, start in zip(nats.levels, nats.contexts[:-1], strict=True)]
    codes = -sum_behind(nats.codes, nats.contexts[-1])
    return Likelihood(codes, torch.stack(sums).sum(dim=0), nats.num_bytes - nats.contexts[0])


def scoring_rows(
    config: HierarchicalAutoencoderConfig, text: bytes, context: bytes = b"", ends: bool = True
) -> list[tuple[list[int], int]]:
    """
    Rows of at most `block_size` ids that score a text, each with the bytes of its context, which come first.

    A text that does not fit is cut into blocks, each conditioned on nothing; the end is an id like another and may
    stand alone in the last block, so that the scores of all texts still sum to at most one. The context is what fits
    in front of the text, its last bytes; a text of more than one block has none.
    """
    ids, size = list(text) + [config.eos_token_id] * ends, config.block_size
    room = max(size - len(ids), 0)
    context = context[max(len(context) - room, 0) :]
    first, *others = [ids[start : start + size] for start in range(0, max(len(ids), 1), size)]
    return [(list(context) + first, len(context))] + [(block, 0) for block in others]


def text_log_likelihood(
    model: HierarchicalAutoencoder,
    texts: Sequence[bytes],
    contexts: Sequence[bytes] | None = None,
    ends: bool = True,
    batch_size: int = 32,
) -> Likelihood:
    """
    [`log_likelihood`] of texts of any length, one row per text; longer ones in blocks, see [`scoring_rows`].

    Args:
        model (`HierarchicalAutoencoder`): In evaluation mode.
        texts (`Sequence[bytes]`), contexts (`Sequence[bytes]`, *optional*): What is scored, and what stands before.
        ends (`bool`, defaults to `True`): Whether the texts end there, or may go on.
        batch_size (`int`, defaults to 32): Rows at a time.
    """
    rows = [
        (text, *row)
        for text, (data, context) in enumerate(zip(texts, contexts or [b""] * len(texts), strict=True))
        for row in scoring_rows(model.config, data, context, ends)
    ]
    found = torch.zeros(3, len(texts), dtype=torch.double, device=model.device)
    for start in range(0, len(rows), batch_size):
        owners, ids, context_lengths = zip(*rows[start : start + batch_size], strict=True)
        length = max(1, *map(len, ids))
        padded = [row + [model.config.pad_token_id] * (length - len(row)) for row in ids]
        inputs = (torch.tensor(values, device=model.device) for values in (owners, padded, context_lengths))
        owners, input_ids, context_lengths = inputs
        part = log_likelihood(model, input_ids, context_lengths=context_lengths)
        found.index_add_(1, owners, torch.stack([part.codes, part.residual, part.num_bytes.double()]))
    return Likelihood(found[0], found[1], found[2].long())


__all__ = ["Likelihood", "UnitNats", "log_likelihood", "nats_by_unit", "scoring_rows", "text_log_likelihood"]
