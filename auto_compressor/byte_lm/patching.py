"""Where patches begin, and states of patches from those of positions and back.

A border at position `i` depends on scores up to `i` only. Sequences are right-padded; the first position is a border.
"""

import torch


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


def gather_patches(
    states: torch.Tensor, border_mask: torch.BoolTensor, num_patches: int | None = None
) -> torch.Tensor:
    """The states at the borders, zeros behind the last of a row: `(batch_size, num_patches, size)`.

    Args:
        states (`torch.Tensor` of shape `(batch_size, length, size)`): States of every position.
        border_mask (`torch.BoolTensor` of shape `(batch_size, length)`): Where patches begin.
        num_patches (`int`, *optional*): At least the most borders of a row, which is read back without it.
    """
    counts = border_mask.sum(dim=1)  # (batch,)
    if num_patches is None:
        num_patches = int(counts.max())
    # Column `num_patches` takes what is no border, and is dropped.
    slots = (border_mask.long().cumsum(dim=1) - 1).masked_fill(~border_mask, num_patches)  # (batch, length)
    positions = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
    # (batch, num_patches): the position of each border
    index = slots.new_zeros(slots.shape[0], num_patches + 1).scatter(1, slots, positions)[:, :-1]
    gathered = states.gather(1, index[..., None].expand(-1, -1, states.shape[-1]))  # (batch, num_patches, size)
    return gathered.masked_fill(~length_mask(counts, num_patches)[..., None], 0.0)


def broadcast_patches(
    patch_states: torch.Tensor,
    border_mask: torch.BoolTensor,
    lengths: torch.LongTensor | None = None,
    carried: torch.Tensor | None = None,
    begun: torch.BoolTensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Gives every position behind a border, up to the next one, the state of the patch that the border begins. Borders
    themselves get zeros, and so do the first patch of a row and padding.

    Args:
        patch_states (`torch.Tensor` of shape `(batch_size, num_patches, size)`): States of the patches that begin
            here.
        border_mask (`torch.BoolTensor` of shape `(batch_size, length)`): Where they begin.
        lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Positions from here on are padding.
        carried (`torch.Tensor` of shape `(batch_size, size)`, *optional*): State of the patch that goes on from
            earlier positions, which an earlier call returned.
        begun (`torch.BoolTensor` of shape `(batch_size,)`, *optional*): Rows that have earlier positions.

    Returns:
        `tuple`: States of the positions `(batch_size, length, size)`, and the state of the last patch, which goes on,
        `(batch_size, size)`.
    """
    num_patches = patch_states.shape[1]
    first = torch.arange(num_patches, device=patch_states.device) == 0
    first = first if begun is None else first & ~begun[:, None]  # (num_patches,) or (batch, num_patches)
    carried = torch.zeros_like(patch_states).sum(dim=1) if carried is None else carried  # (batch, size)
    # (batch, 1 + num_patches, size): what is carried, and the patches that begin here
    states = torch.cat([carried[:, None], patch_states.masked_fill(first[..., None], 0.0)], dim=1)
    # (batch, length, size): how many borders came so far is the row of `states`
    index = border_mask.long().cumsum(dim=1)[..., None].expand(-1, -1, states.shape[-1])
    silent = border_mask if lengths is None else border_mask | ~length_mask(lengths, border_mask.shape[1])
    found = states.gather(1, index)  # (batch, length, size)
    return found.masked_fill(silent[..., None], 0.0), states.gather(1, index[:, -1:])[:, 0]


__all__ = [
    "broadcast_patches",
    "continued_borders",
    "gather_patches",
    "length_mask",
    "scan_borders",
    "threshold_borders",
]
