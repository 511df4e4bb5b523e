"""What an AutoCompressor returns: dataclasses that give the shape of every tensor."""

from dataclasses import dataclass

import torch
from transformers import Cache
from transformers.utils import ModelOutput

from .cache_names import CacheOutput


@dataclass
class SegmentSummary(ModelOutput):
    r"""
    The summary vectors of one segment.

    Args:
        vectors (`torch.FloatTensor` of shape `(batch_size, num_vectors, embedding_dim)`):
            Last hidden states, after the final norm.
        weights (`torch.Tensor` of shape `(batch_size, num_vectors)`, *optional*):
            1 for vectors that the next segment sees, 0 for others; in training of variable-length summaries the
            survival s_t. `None` if all are seen.
        stop_probs (`torch.FloatTensor` of shape `(batch_size, num_vectors)`, *optional*, variable length only):
            p_t, the probability of `<eoc>` after vector t.
    """

    vectors: torch.FloatTensor | None = None
    weights: torch.Tensor | None = None
    stop_probs: torch.FloatTensor | None = None


@dataclass
class AutoCompressorOutput(CacheOutput):
    r"""
    Output of an AutoCompressor.

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` or `shift_labels` are given):
            Mean cross-entropy of the next tokens, in nats, over the text of all segments, and the length penalty.
        logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`, *optional*):
            Logits of the text tokens of all segments; `None` with `skip_logits=True`.
        last_hidden_state (`torch.FloatTensor` of shape `(batch_size, sequence_length, embedding_dim)`):
            What the head reads: the last hidden states at the text tokens of all segments.
        cache (`SoftpromptCache`, *optional*, returned with `use_cache=True`):
            Keys and values of the last segment, its softprompt included.
        softprompt (`torch.FloatTensor` of shape `(batch_size, softprompt_length, embedding_dim)`):
            Summary vectors after the last segment; `softprompt_length` is 0 if there are none.
        softprompt_attention_mask (`torch.Tensor` of shape `(batch_size, softprompt_length)`):
            1 for the summary vectors that are attended to, 0 for others; in training of variable-length summaries
            their survival in [0, 1], whose logarithm is added to the attention scores.
        summaries (`tuple(SegmentSummary)`):
            The new summary vectors of every compressed segment.
        length_penalty (`torch.FloatTensor` of shape `(1,)`, *optional*, variable-length summaries only):
            The part of the loss that their number costs: `compression_lambda` times the mean, over rows and segments,
            of E[L] / (text tokens + `compression_alpha` x vectors before).
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned with `output_hidden_states=True`):
            One `(batch_size, sequence_length, hidden_size)` for the embeddings and one per layer, at the text tokens.
        attentions (`tuple`, *optional*, returned with `output_attentions=True`):
            Attention weights of every layer, as in transformers; for several segments, one such tuple each.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    last_hidden_state: torch.FloatTensor | None = None
    cache: Cache | None = None
    softprompt: torch.FloatTensor | None = None
    softprompt_attention_mask: torch.Tensor | None = None
    summaries: tuple[SegmentSummary, ...] | None = None
    length_penalty: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple | None = None


__all__ = ["AutoCompressorOutput", "SegmentSummary"]
