"""What the byte language models return: a dataclass that gives the shape of every tensor."""

from dataclasses import dataclass

import torch
from transformers import Cache

from .cache_names import CacheOutput


@dataclass
class ByteLMOutput(CacheOutput):
    """
    Output of [`AdaptiveByteForCausalLM`] and [`GRUByteForCausalLM`]. Level 0 is bytes; the units of another level are
    the patches of the level below.

    Args:
        loss (`torch.Tensor`, scalar): Weighted sum of `losses`, in nats; only with `labels`.
        logits (`torch.Tensor` of shape `(batch_size, length, vocab_size)`): Logits of the next byte, from all levels.
        encoder_logits (`torch.Tensor` of shape `(batch_size, length, vocab_size)`): Logits of the next byte, from
            level 0 alone; only of the adaptive model.
        losses (`dict[str, torch.Tensor]`): Means by name, each a scalar: `byte_decoder`, and of the adaptive model
            `byte_encoder`, `meta`, `uncertainty` and `entropy_reg`.
        border_masks (`tuple(torch.BoolTensor)` of shape `(batch_size, units)`): Where patches begin, of every level
            but the top one. Level 0 is in the columns of the input; the units of others stand in front of each row.
        entropies (`torch.Tensor` of shape `(batch_size, length)`): Entropy of `encoder_logits`, in nats; 0 for
            padding.
        hidden_states (`tuple(torch.Tensor)` of shape `(batch_size, units, hidden_size)`): Encoder states of every
            level, or of every layer; zeros behind the last unit of a row.
        cache (`RecurrentCache`): The states after the last byte.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    encoder_logits: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    border_masks: tuple[torch.BoolTensor, ...] | None = None
    entropies: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    cache: Cache | None = None


__all__ = ["ByteLMOutput"]
