"""Objectives of the activation compressor beside the next token."""

import torch
from torch.nn import functional as F


def divergence_loss(logits: torch.Tensor, teacher_logits: torch.Tensor, counted: torch.BoolTensor) -> torch.Tensor:
    """
    Mean KL(teacher || student) of the next token, in nats.

    Args:
        logits, teacher_logits (`torch.Tensor` of shape `(batch_size, length, vocab_size)`): Logits at the same tokens.
        counted (`torch.BoolTensor` of shape `(batch_size, length)`): Positions that count.
    """
    log_probs, teacher = (scores.float().log_softmax(dim=-1) for scores in (logits, teacher_logits))
    divergence = F.kl_div(log_probs, teacher, reduction="none", log_target=True).sum(dim=-1)  # (batch, length)
    return (divergence * counted).sum() / counted.sum().clamp_min(1)


def importance_loss(log_importance: torch.Tensor, attention: torch.Tensor, valid: torch.BoolTensor) -> torch.Tensor:
    """
    Mean KL(attention || importance) over rows and heads, in nats, both as shares of the tokens.

    Args:
        log_importance (`torch.Tensor` of shape `(batch_size, num_heads, tokens)`): What is learned.
        attention (`torch.Tensor` of shape `(batch_size, num_heads, tokens)`): What later queries pay, 0 for padding.
        valid (`torch.BoolTensor` of shape `(batch_size, num_heads, tokens)`): Tokens that are no padding.
    """
    # (batch, heads, tokens), each head a distribution over tokens
    target = attention / attention.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(attention.dtype).tiny)
    log_probs = log_importance.masked_fill(~valid, -torch.inf).log_softmax(dim=-1).masked_fill(~valid, 0)
    return F.kl_div(log_probs, target, reduction="none").sum(dim=-1).mean()


def contrastive_loss(
    members: torch.Tensor,
    slots: torch.Tensor,
    assignment: torch.LongTensor,
    filled: torch.BoolTensor,
    temperature: float,
) -> torch.Tensor:
    """
    InfoNCE of tokens against the slots of their head, by cosine similarity: a token belongs to the slot that it joined
    (van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018, section 2.3).

    Args:
        members (`torch.Tensor` of shape `(batch_size, num_heads, tokens, dim)`): Vectors of the tokens.
        slots (`torch.Tensor` of shape `(batch_size, num_heads, slots, dim)`): Vectors of the slots.
        assignment (`torch.LongTensor` of shape `(batch_size, num_heads, tokens)`): The slot of each token, or -1.
        filled (`torch.BoolTensor` of shape `(batch_size, num_heads, slots)`): Slots that are there.
        temperature (`float`): Divides the similarities.

    Returns:
        `torch.Tensor`: Mean over the tokens, in nats; 0 without any.
    """
    members, slots = (F.normalize(vectors.float(), dim=-1) for vectors in (members, slots))
    # (batch, heads, tokens, slots)
    logits = (members @ slots.transpose(2, 3) / temperature).masked_fill(~filled[:, :, None], -torch.inf)
    counted = assignment >= 0  # (batch, heads, tokens)
    # (batch, heads, tokens, 1): of the slot that each token joined
    log_probs = (logits - logits.logsumexp(dim=-1, keepdim=True)).gather(-1, assignment.clamp_min(0)[..., None])
    return -log_probs[..., 0].where(counted, 0).sum() / counted.sum().clamp_min(1)


__all__ = ["contrastive_loss", "divergence_loss", "importance_loss"]
