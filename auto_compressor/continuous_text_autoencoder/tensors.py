"""Small functions on tensors. Families have equal copies of shared ones: each is pushed to the hub by itself."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F


# 2^25 float32 logits are 128 MiB.
MAX_LOGITS_IN_MEMORY = 2**25


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


def warmed_up(decay: float, num_batches: torch.Tensor) -> torch.Tensor:
    """The decay of running statistics after `num_batches`: the first batches, which say little, are soon forgotten."""
    return ((20 + num_batches) / (25 + num_batches)).clamp(max=decay)


class RunningNorm(nn.Module):
    """
    Brings every dimension to mean 0 and variance 1 by statistics that follow those of the batches, of all processes;
    in training and evaluation alike, so that no row depends on the others.

    Args:
        size (`int`): Width of the vectors.
        decay (`float`): What the statistics keep of their value at every batch.
    """

    def __init__(self, size: int, decay: float):
        super().__init__()
        self.decay = decay
        self.mean = nn.Buffer(torch.empty(size))
        self.variance = nn.Buffer(torch.empty(size))
        self.num_batches = nn.Buffer(torch.empty(()))

    @torch.no_grad()
    def update(self, vectors: torch.Tensor, mask: torch.BoolTensor):
        # (vectors, size), zeros for those that do not count
        rows = vectors.to(self.mean.dtype).masked_fill(~mask[..., None], 0.0).flatten(0, -2)
        # (3, size): sums, squares, and the count, so that processes exchange a single tensor
        sums = torch.stack([rows.sum(dim=0), rows.square().sum(dim=0), mask.sum().to(rows.dtype).expand_as(self.mean)])
        total, squares, count = sum_over_processes(sums)
        mean = total / count.clamp(min=1)
        # Rounding makes it negative where all rows are nearly the same.
        variance = (squares / count.clamp(min=1) - mean.square()).clamp(min=0)
        any_vectors = (count > 0).to(count.dtype)
        weight = (1 - warmed_up(self.decay, self.num_batches)) * any_vectors
        self.mean.lerp_(mean, weight)
        self.variance.lerp_(variance, weight)
        self.num_batches.add_(any_vectors[0])

    def forward(self, vectors: torch.Tensor, mask: torch.BoolTensor) -> torch.Tensor:
        if self.training:
            self.update(vectors, mask)
        return ((vectors - self.mean) * (self.variance + 1e-6).rsqrt()).to(vectors.dtype)


__all__ = [
    "MAX_LOGITS_IN_MEMORY",
    "RunningNorm",
    "at_least_float32",
    "count_for_mean",
    "is_distributed",
    "masked_mean",
    "mean_over_targets",
    "sum_over_processes",
    "summed_cross_entropy",
    "warmed_up",
]
