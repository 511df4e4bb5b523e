"""Cutting a text into segments, and joining what the segments give."""

import math

import torch


def resolve_segment_lengths(segment_lengths: int | list[int] | None, length: int) -> list[int]:
    """
    Returns the length of every segment of a text of `length` tokens.

    An integer cuts equal segments, the last one holding the rest; `None` is one segment; a list is checked.

    Raises:
        ValueError: if a length is not a positive integer, or if a list does not sum to `length`.
    """
    if segment_lengths is None:
        return [length]
    lengths = list(segment_lengths) if isinstance(segment_lengths, list | tuple) else [segment_lengths]
    if not lengths or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in lengths):
        raise ValueError(f"`segment_lengths` must be positive integers, got {segment_lengths}.")
    if isinstance(segment_lengths, int):
        full, rest = divmod(length, segment_lengths)
        return [segment_lengths] * full + [rest] * (rest > 0)
    if sum(lengths) != length:
        raise ValueError(
            f"`segment_lengths` must sum to the sequence length {length}, got {segment_lengths} = {sum(lengths)}."
        )
    return lengths


def equal_segment_lengths(length: int, max_length: int) -> list[int]:
    """Cuts `length` tokens into the fewest segments of at most `max_length`, as equal as can be, the longer first."""
    num_segments = math.ceil(length / max_length)
    shorter, longer = divmod(length, num_segments)
    return [shorter + 1] * longer + [shorter] * (num_segments - longer)


def split_optional(tensor: torch.Tensor | None, segment_lengths: list[int]) -> list[torch.Tensor | None]:
    """Splits `(batch, length)` into segments; one segment takes it whole, cached columns included."""
    if tensor is None or len(segment_lengths) == 1:
        return [tensor] * len(segment_lengths)
    return list(tensor.split(segment_lengths, dim=1))


def mask_or_ones(mask: torch.LongTensor | None, length: int, device: torch.device) -> torch.LongTensor:
    """Returns the mask, or a row of ones `(1, length)` that stands for every row."""
    return torch.ones(1, length, dtype=torch.long, device=device) if mask is None else mask


def join_hidden_states(segments: list[tuple | None]) -> tuple[torch.Tensor, ...] | None:
    """Joins the hidden states of the segments, layer by layer, along the text."""
    if segments[0] is None:
        return None
    return tuple(torch.cat(layer, dim=1) for layer in zip(*segments, strict=True))


def join_attentions(segments: list[tuple | None]) -> tuple | None:
    return segments[0] if len(segments) == 1 or segments[0] is None else tuple(segments)


__all__ = [
    "equal_segment_lengths",
    "join_attentions",
    "join_hidden_states",
    "mask_or_ones",
    "resolve_segment_lengths",
    "split_optional",
]
