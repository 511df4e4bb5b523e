"""Small functions on tensors. Families have equal copies of shared ones: each is pushed to the hub by itself."""

import math

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F


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


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def summed_cross_entropy(logits: torch.Tensor, targets: torch.LongTensor) -> torch.Tensor:
    """Sum of the cross-entropies in float32, in nats: `(..., vocab_size)` and `(...)` -> scalar. -100 is ignored."""
    logits = at_least_float32(logits).flatten(0, -2)  # (tokens, vocab)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=-100, reduction="sum")


def mean_over_targets(
    summed_loss: torch.Tensor, targets: torch.LongTensor, num_items_in_batch: torch.Tensor | float | None = None
) -> torch.Tensor:
    """Divides by `num_items_in_batch`, or by the number of targets; without any target the loss is 0, not NaN."""
    if num_items_in_batch is None:
        num_items_in_batch = (targets != -100).sum().clamp(min=1)
    elif isinstance(num_items_in_batch, torch.Tensor):
        num_items_in_batch = num_items_in_batch.to(summed_loss.device)
    return summed_loss / num_items_in_batch


def equal_segment_lengths(length: int, max_length: int) -> list[int]:
    """Cuts `length` tokens into the fewest segments of at most `max_length`, as equal as can be, the longer first."""
    num_segments = math.ceil(length / max_length)
    shorter, longer = divmod(length, num_segments)
    return [shorter + 1] * longer + [shorter] * (num_segments - longer)


def drops_caches(model: nn.Module) -> bool:
    """Whether the layers of `model` drop a cache, as transformers' gradient checkpointing does in training."""
    return model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def check_layer_checkpointing(model: nn.Module):
    """Raises a `ValueError` where a base model would lose the cache that is compressed."""
    if drops_caches(model):
        raise ValueError(
            "`gradient_checkpointing` drops the cache that is compressed: it must be off in the base model, it is on."
        )


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the tensors of all processes, which are of one shape."""
    if is_distributed():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


__all__ = [
    "at_least_float32",
    "check_layer_checkpointing",
    "drops_caches",
    "equal_segment_lengths",
    "is_distributed",
    "mean_over_targets",
    "shift_labels_left",
    "sum_over_processes",
    "summed_cross_entropy",
]
