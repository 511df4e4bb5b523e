"""Next-token losses that never hold the logits of a whole sequence."""

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .linear_cross_entropy import (
    at_least_float32,
    cross_entropies,
    divergences,
    fused_linear_loss,
    is_fused,
    liger_cross_entropy,
)


# 2^23 float32 logits are 32 MiB.
MAX_LOGITS_IN_MEMORY = 2**23


def shift_labels_left(labels: torch.LongTensor, skipped: torch.BoolTensor | None = None) -> torch.LongTensor:
    """
    Returns the target of every position, the label after it, -100 at the end: `(batch, length)` in and out.

    Tokens where `skipped` `(batch, length)` is true, which stand alone between others, are no targets and have none:
    the token in front of one predicts the token behind it.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=-100)  # (batch, length)
    if skipped is None:
        return targets
    targets = torch.where(F.pad(skipped[:, 1:], (0, 1)), shift_labels_left(targets), targets)
    return targets.masked_fill(skipped, -100)


def summed_cross_entropy(logits: torch.Tensor, targets: torch.LongTensor) -> torch.Tensor:
    """Sum of the cross-entropies in float32, in nats: `(..., vocab_size)` and `(...)` -> scalar. -100 is ignored."""
    logits = at_least_float32(logits).flatten(0, -2)  # (tokens, vocab)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=-100, reduction="sum")


def sum_over_chunks(chunk_loss: Callable[..., torch.Tensor], vocab_size: int, *tensors: torch.Tensor) -> torch.Tensor:
    """
    Sums `chunk_loss` over chunks of tokens, with the logits of one chunk in memory at a time.

    The backward pass computes them again, so that neither pass holds more than `MAX_LOGITS_IN_MEMORY` of them.

    Args:
        chunk_loss (`Callable`): Maps chunks of the tensors to a scalar.
        vocab_size (`int`): Logits per token.
        tensors (`torch.Tensor` of shape `(batch_size, sequence_length, ...)`): Cut into chunks along the tokens.
    """
    tokens_per_chunk = max(1, MAX_LOGITS_IN_MEMORY // vocab_size)
    # each part (tokens, ...)
    chunks = zip(*(tensor.flatten(0, 1).split(tokens_per_chunk) for tensor in tensors), strict=True)
    return torch.stack([checkpoint(chunk_loss, *chunk, use_reentrant=False) for chunk in chunks]).sum()


def chunked_cross_entropy(
    lm_head: Callable[[torch.Tensor], torch.Tensor],
    hidden_states: torch.Tensor,
    targets: torch.LongTensor,
    vocab_size: int,
    use_liger_kernel: bool = False,
) -> torch.Tensor:
    """
    `summed_cross_entropy(lm_head(hidden_states), targets)` with the logits of a few tokens in memory at a time.

    Args:
        lm_head (`Callable`): Maps `(tokens, hidden_size)` to `(tokens, vocab_size)`; a plain `nn.Linear` is called in
            the forward pass only, and its loss can be differentiated once.
        hidden_states (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): Last hidden states.
        targets (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Next tokens; -100 is ignored.
        vocab_size (`int`): Logits per token.
        use_liger_kernel (`bool`, defaults to `False`): Whether liger-kernel does so for a plain `nn.Linear`.

    Returns:
        `torch.Tensor`: Scalar, in nats.
    """
    if is_fused(lm_head, hidden_states):
        if use_liger_kernel:
            return liger_cross_entropy(lm_head, hidden_states, targets)
        counted = targets != -100
        return fused_linear_loss(cross_entropies, lm_head, hidden_states, targets, counted, MAX_LOGITS_IN_MEMORY)

    def chunk_loss(hidden_chunk, target_chunk):
        return summed_cross_entropy(lm_head(hidden_chunk), target_chunk)

    return sum_over_chunks(chunk_loss, vocab_size, hidden_states, targets)


def chunked_divergence(
    lm_head: Callable[[torch.Tensor], torch.Tensor],
    hidden_states: torch.Tensor,
    teacher_head: Callable[[torch.Tensor], torch.Tensor],
    teacher_states: torch.Tensor,
    counted: torch.BoolTensor,
    vocab_size: int,
) -> torch.Tensor:
    """
    Sum of KL(teacher || student) of the next token over the positions that are counted, in nats.

    Args:
        lm_head, teacher_head (`Callable`): Map hidden states to logits; the student may have more tokens, at the end.
        hidden_states, teacher_states (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`): Last
            hidden states of the same tokens; each has its own `hidden_size`.
        counted (`torch.BoolTensor` of shape `(batch_size, sequence_length)`): Positions that count.
        vocab_size (`int`): Logits per token.
    """
    token_losses = partial(divergences, teacher_head)
    if is_fused(lm_head, hidden_states):
        return fused_linear_loss(token_losses, lm_head, hidden_states, teacher_states, counted, MAX_LOGITS_IN_MEMORY)

    def chunk_loss(hidden_chunk, teacher_chunk, counted_chunk):
        student = at_least_float32(lm_head(hidden_chunk)).log_softmax(dim=-1)  # (tokens, vocab)
        return token_losses(student, False, teacher_chunk).where(counted_chunk, 0).sum()

    return sum_over_chunks(chunk_loss, vocab_size, hidden_states, teacher_states, counted)


def mean_over_targets(
    summed_loss: torch.Tensor, targets: torch.LongTensor, num_items_in_batch: torch.Tensor | float | None = None
) -> torch.Tensor:
    """Divides by `num_items_in_batch`, or by the number of targets; without any target the loss is 0, not NaN."""
    if num_items_in_batch is None:
        num_items_in_batch = (targets != -100).sum().clamp(min=1)
    elif isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(summed_loss.device)
    return summed_loss / num_items_in_batch


__all__ = [
    "chunked_cross_entropy",
    "chunked_divergence",
    "mean_over_targets",
    "shift_labels_left",
    "summed_cross_entropy",
]
