"""Small functions on tensors. Families have equal copies of shared ones: each is pushed to the hub by itself."""

import torch
import torch.distributed as dist
from torch.nn import functional as F


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def token_losses(logits: torch.Tensor, labels: torch.LongTensor) -> torch.Tensor:
    """Cross entropy in nats per label, `(...)`, 0 where the label is -100."""
    # (labels,), of all rows one after the other
    flat = F.cross_entropy(at_least_float32(logits).flatten(0, -2), labels.flatten(), reduction="none")
    return flat.view(labels.shape)


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of the tensors of all processes, which are of one shape."""
    if is_distributed():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def count_for_mean(mask: torch.BoolTensor, over_processes: bool) -> torch.Tensor:
    """
    How many of `mask` are True, and 1 at least: what a sum is divided by for a mean.

    With `over_processes`, it is the average count of all processes, so that the average of their results, which
    training takes, is the mean over all.
    """
    count = mask.sum()
    if over_processes and is_distributed():
        count = sum_over_processes(count) / dist.get_world_size()
    return count.clamp(min=1)


def masked_mean(values: torch.Tensor, mask: torch.BoolTensor, over_processes: bool = False) -> torch.Tensor:
    """Mean of the `values` whose `mask` is True, 0 if there is none; both of one shape. See `count_for_mean`."""
    return values.masked_fill(~mask, 0.0).sum() / count_for_mean(mask, over_processes)


__all__ = ["at_least_float32", "count_for_mean", "is_distributed", "masked_mean", "sum_over_processes", "token_losses"]
