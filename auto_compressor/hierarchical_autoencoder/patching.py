"""Where patches begin: the border rules, and what follows from borders (ids, positions, lengths of patches).

Every rule decides on position `i` from scores up to `i` only, so that borders never depend on what comes later.
Sequences are right-padded; the first position is always a border.
"""

import torch


def rising_borders(entropies: torch.Tensor, threshold: float | torch.Tensor) -> torch.BoolTensor:
    """Borders where the entropy rises by more than `threshold` over the position before (BLT, arXiv
    2412.09871, section 2.3).

    Args:
        entropies (`torch.Tensor` of shape `(batch_size, length)`): Entropy of what comes next, in nats.
        threshold (`float` or scalar tensor): Rise above which a border stands, in nats.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, length)`.
    """
    borders = torch.ones_like(entropies, dtype=torch.bool)
    borders[:, 1:] = entropies.diff(dim=1) > threshold
    return borders


def threshold_borders(entropies: torch.Tensor, threshold: float | torch.Tensor) -> torch.BoolTensor:
    """Borders where the entropy is above `threshold` (BLT, arXiv 2412.09871, section 2.3).

    Args:
        entropies (`torch.Tensor` of shape `(batch_size, length)`): Entropy of what comes next, in nats, or scores.
        threshold (`float` or scalar tensor): In the unit of the scores.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, length)`.
    """
    borders = entropies > threshold
    borders[:, :1] = True
    return borders


def cumulative_borders(
    scores: torch.Tensor, threshold: float | torch.Tensor, lengths: torch.LongTensor | None = None
) -> torch.BoolTensor:
    """Borders where the scores since the last border reach `threshold`; what is above it is dropped.

    The score of the first position counts for nothing. Sums are taken in float32, one position after the other: their
    rounding decides on ties.

    Args:
        scores (`torch.Tensor` of shape `(batch_size, length)`): Entropies in nats, or other scores of at least 0.
        threshold (`float` or scalar tensor): In the unit of the scores.
        lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Positions from here on are padding, which
            has no borders.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, length)`.
    """
    return continued_borders(scores, threshold, lengths)[0]


@torch.no_grad()
def continued_borders(
    scores: torch.Tensor,
    threshold: float | torch.Tensor,
    lengths: torch.LongTensor | None = None,
    running_sum: torch.Tensor | None = None,
    begun: torch.BoolTensor | None = None,
) -> tuple[torch.BoolTensor, torch.Tensor]:
    """
    Borders where the scores since the last border reach `threshold`, of rows that may go on from earlier positions.

    What is above the threshold is dropped. The first position of all is a border, and its score counts for nothing.

    Args:
        scores (`torch.Tensor` of shape `(batch_size, length)`): Entropies in nats, or other scores of at least 0.
        threshold (`float` or scalar tensor): In the unit of the scores.
        lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Positions from here on are padding, which
            has no borders.
        running_sum (`torch.Tensor` of shape `(batch_size,)`, *optional*): Float32 sums since the last borders, which
            an earlier call returned.
        begun (`torch.BoolTensor` of shape `(batch_size,)`, *optional*): Rows that have earlier positions, so that
            the first one here is not the first of all.

    Returns:
        `tuple`: Borders `(batch_size, length)`, and the running sums behind the last positions `(batch_size,)`.
    """
    if scores.ndim != 2:
        raise ValueError(f"`scores` must have the shape (batch_size, length), got {tuple(scores.shape)}.")
    mask = torch.ones_like(scores, dtype=torch.bool) if lengths is None else length_mask(lengths, scores.shape[1])
    first = mask[:, :1] if begun is None else mask[:, :1] & ~begun[:, None]  # (batch, 1)
    scores = scores.float().masked_fill(~mask, 0.0)
    # The first position of all is a border anyway.
    scores[:, :1].masked_fill_(first, 0.0)
    running_sum = scores.new_zeros(scores.shape[0]) if running_sum is None else running_sum  # (batch,)
    borders, running_sum = scan_borders(scores, threshold, running_sum)
    borders &= mask
    borders[:, :1] |= first
    return borders, running_sum


def scan_borders(
    scores: torch.Tensor, threshold: float | torch.Tensor, running_sum: torch.Tensor
) -> tuple[torch.BoolTensor, torch.Tensor]:
    """The loop of [`continued_borders`] over positions, of all rows at once, in which every score counts."""
    threshold = torch.as_tensor(threshold, dtype=torch.float32, device=scores.device)
    running_sum = running_sum.clone()
    # Positions come first, so that each step writes to contiguous memory.
    borders = torch.empty(scores.shape[::-1], dtype=torch.bool, device=scores.device)  # (length, batch)
    for score, border in zip(scores.unbind(dim=1), borders.unbind(dim=0), strict=True):
        torch.ge(running_sum.add_(score), threshold, out=border)
        running_sum.masked_fill_(border, 0.0)
    return borders.T.contiguous(), running_sum


def length_mask(lengths: torch.LongTensor, width: int) -> torch.BoolTensor:
    """True for the first `lengths` positions of every row: `(batch_size, width)`."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def limit_patch_lengths(border_mask: torch.BoolTensor, max_length: int) -> torch.BoolTensor:
    """Adds a border every `max_length` positions after a border, so that no patch is longer."""
    positions = torch.arange(border_mask.shape[1], device=border_mask.device).expand_as(border_mask)
    return border_mask | ((positions - last_borders(border_mask)) % max_length == 0)


def last_borders(border_mask: torch.BoolTensor) -> torch.LongTensor:
    """The index of the last border at or before every position: `(batch_size, length)`."""
    positions = torch.arange(border_mask.shape[1], device=border_mask.device).expand_as(border_mask)
    return positions.masked_fill(~border_mask, 0).cummax(dim=1).values


def positions_in_patch(border_mask: torch.BoolTensor) -> torch.LongTensor:
    """Positions since the last border, 0 at the border: `(batch_size, length)`."""
    positions = torch.arange(border_mask.shape[1], device=border_mask.device)
    return positions - last_borders(border_mask)


def patch_ids_from_borders(border_mask: torch.BoolTensor, mask: torch.BoolTensor) -> torch.LongTensor:
    """The number of the patch of every position, from 0 on in every row; -1 where `mask` is False."""
    return (border_mask.long().cumsum(dim=1) - 1).masked_fill(~mask, -1)  # (batch, length)


def patch_lengths_from_ids(patch_ids: torch.LongTensor, num_patches: int) -> torch.LongTensor:
    """Positions of every patch, 0 behind the last patch of a row: `(batch_size, num_patches)`."""
    lengths = patch_ids.new_zeros(patch_ids.shape[0], num_patches + 1)  # (batch, num_patches + 1)
    # Padding (-1) is counted in a column of its own.
    lengths.scatter_add_(1, patch_ids % (num_patches + 1), torch.ones_like(patch_ids))
    return lengths[:, :-1]


def patches_before(patch_lengths: torch.LongTensor, positions: torch.LongTensor) -> torch.LongTensor:
    """How many patches end within the first positions of every row: `(batch_size,)`.

    Args:
        patch_lengths (`torch.LongTensor` of shape `(batch_size, num_patches)`): 0 behind the last patch of a row.
        positions (`torch.LongTensor` of shape `(batch_size,)`): How many positions count as the first ones.
    """
    within = patch_lengths.cumsum(dim=1) <= positions[:, None]  # (batch, num_patches)
    return (within & (patch_lengths > 0)).sum(dim=1)


BORDER_RULES = {
    "entropy_rise": rising_borders,
    "entropy_threshold": threshold_borders,
    "cumulative_entropy": cumulative_borders,
    "target_ratio": rising_borders,
}

__all__ = [
    "BORDER_RULES",
    "continued_borders",
    "cumulative_borders",
    "last_borders",
    "length_mask",
    "limit_patch_lengths",
    "patch_ids_from_borders",
    "patch_lengths_from_ids",
    "patches_before",
    "positions_in_patch",
    "rising_borders",
    "threshold_borders",
]
