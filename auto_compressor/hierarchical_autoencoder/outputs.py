"""What the hierarchical byte autoencoder and its parts return: dataclasses that give the shape of every tensor."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class SegmentCompressorOutput(ModelOutput):
    """
    Output of [`ByteSegmentCompressor`]. Units are bytes, or the segments of the level below.

    Args:
        stages (`torch.Tensor` of shape `(batch_size, patches, num_quantizers, codebook_dim)`): Quantised segments.
        codes (`torch.LongTensor` of shape `(batch_size, patches, num_quantizers)`): -1 behind the last of a row.
        patch_ids (`torch.LongTensor` of shape `(batch_size, units)`): Segment of every unit, -1 for padding.
        positions (`torch.LongTensor` of shape `(batch_size, units)`): Place of every unit within its segment.
        patch_lengths (`torch.LongTensor` of shape `(batch_size, patches)`): Lengths of the segments in units, 0 behind
            the last of a row.
        entropies (`torch.Tensor` of shape `(batch_size, units)`): Entropy of the next symbol after each unit, in nats;
            0 for padding.
        commitment_loss, lm_loss (`torch.Tensor`, scalars): The commitment loss of the quantiser, and the mean loss of
            the next symbol, in nats.
    """

    stages: torch.Tensor | None = None
    codes: torch.LongTensor | None = None
    patch_ids: torch.LongTensor | None = None
    positions: torch.LongTensor | None = None
    patch_lengths: torch.LongTensor | None = None
    entropies: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    lm_loss: torch.Tensor | None = None


@dataclass
class CodeExpanderOutput(ModelOutput):
    """
    Output of [`CodeExpander`].

    Args:
        logits (`torch.Tensor` of shape `(batch_size, symbols, vocab_size)`): Logits of each symbol, from the codes and
            the earlier symbols of its segment.
        end_logits (`torch.Tensor` of shape `(batch_size, units)`): Logits that a unit is the last of its segment.
    """

    logits: torch.Tensor | None = None
    end_logits: torch.Tensor | None = None


@dataclass
class HierarchicalEncoderOutput(ModelOutput):
    """
    Output of [`HierarchicalAutoencoder.encode`], one tensor per level in each tuple, from bytes upwards.

    Args:
        codes (`torch.LongTensor` of shape `(batch_size, num_quantizers, patches)`): The top codes, which `decode`
            takes; -1 behind the last of a row.
        lengths (`torch.LongTensor` of shape `(batch_size, patches)`): Bytes of every top code, 0 behind the last.
        level_codes (`tuple(torch.LongTensor)`): The codes of every level, the top ones last.
        patch_ids (`tuple(torch.LongTensor)` of shape `(batch_size, units)`): Segment of every byte, or of every code
            of the level below; -1 for padding.
        patch_lengths (`tuple(torch.LongTensor)` of shape `(batch_size, patches)`): Units of every segment.
        entropies (`tuple(torch.Tensor)` of shape `(batch_size, units)`): Entropy of the next symbol after each unit,
            in nats.
    """

    codes: torch.LongTensor | None = None
    lengths: torch.LongTensor | None = None
    level_codes: tuple[torch.LongTensor, ...] | None = None
    patch_ids: tuple[torch.LongTensor, ...] | None = None
    patch_lengths: tuple[torch.LongTensor, ...] | None = None
    entropies: tuple[torch.Tensor, ...] | None = None


@dataclass
class HierarchicalDecoderOutput(ModelOutput):
    """
    Output of [`HierarchicalAutoencoder.decode`].

    Args:
        sequences (`torch.LongTensor` of shape `(batch_size, length)`): Bytes, and padding behind them.
        lengths (`torch.LongTensor` of shape `(batch_size, patches)`): Bytes of every top code, 0 behind the last.
    """

    sequences: torch.LongTensor | None = None
    lengths: torch.LongTensor | None = None


@dataclass
class HierarchicalAutoencoderOutput(ModelOutput):
    """
    Output of [`HierarchicalAutoencoder`].

    Args:
        loss (`torch.Tensor`, scalar): Weighted sum of `losses`; only with `labels`.
        logits (`torch.Tensor` of shape `(batch_size, length, 256)`): Logits of each byte, from the codes and the
            earlier bytes of its segment; none while the language model over the codes is trained alone.
        losses (`dict[str, torch.Tensor]`): `reconstruction`, `lm` and `commitment` of every level, `code`; then only
            `code`.
        codes, patch_ids, entropies: As in [`HierarchicalEncoderOutput`], codes of every level.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    codes: tuple[torch.LongTensor, ...] | None = None
    patch_ids: tuple[torch.LongTensor, ...] | None = None
    entropies: tuple[torch.Tensor, ...] | None = None


__all__ = [
    "CodeExpanderOutput",
    "HierarchicalAutoencoderOutput",
    "HierarchicalDecoderOutput",
    "HierarchicalEncoderOutput",
    "SegmentCompressorOutput",
]
