"""Cutting a text into segments, and joining what the segments give."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import starmap
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F


if TYPE_CHECKING:
    from transformers import Cache


LayerKeys = tuple[torch.Tensor, torch.Tensor]  # keys and values of one layer, each (rows, heads, vectors, head_dim)


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


def append_sum_tokens(
    inputs: dict[str, torch.Tensor], segment_lengths: list[int], sum_token_id: int, include_last: bool = True
) -> tuple[dict[str, torch.Tensor], list[int]]:
    """
    Appends `<sum>` to every segment of a text; no token is overwritten.

    Args:
        inputs (`dict[str, torch.Tensor]`): `input_ids` and, if given, `attention_mask`, `labels`, `shift_labels`, each
            `(batch, length)`. `<sum>` is attended to in the rows that have text in the segment, and never a label.
        segment_lengths (`list[int]`): Sums to `length`.
        sum_token_id (`int`): The token.
        include_last (`bool`, defaults to `True`): Whether the last segment gets one too.

    Returns:
        The same tensors with a column more per segment, and the lengths of their segments.
    """
    num_appended = len(segment_lengths) - (not include_last)

    def column(name: str, segment: torch.Tensor) -> torch.Tensor:
        if name == "attention_mask":
            return segment.amax(dim=1, keepdim=True)  # (batch, 1)
        return torch.full_like(segment[:, :1], sum_token_id if name == "input_ids" else -100)

    longer = {}
    for name, tensor in inputs.items():
        segments = tensor.split(segment_lengths, dim=1)
        ended = [part for segment in segments[:num_appended] for part in (segment, column(name, segment))]
        longer[name] = torch.cat([*ended, *segments[num_appended:]], dim=1)  # (batch, length + num_appended)
    return longer, [length + (index < num_appended) for index, length in enumerate(segment_lengths)]


def split_optional(tensor: torch.Tensor | None, segment_lengths: list[int]) -> list[torch.Tensor | None]:
    """Splits `(batch, length)` into segments; one segment takes it whole, cached columns included."""
    if tensor is None or len(segment_lengths) == 1:
        return [tensor] * len(segment_lengths)
    return list(tensor.split(segment_lengths, dim=1))


def mask_or_ones(mask: torch.LongTensor | None, length: int, device: torch.device) -> torch.LongTensor:
    """Returns the mask, or a row of ones `(1, length)` that stands for every row."""
    return torch.ones(1, length, dtype=torch.long, device=device) if mask is None else mask


@dataclass(frozen=True)
class Text:
    """
    What is read, a segment or all of it.

    Args:
        embeds (`torch.Tensor` of shape `(batch, length, embedding_dim)`): Embeddings of the text.
        mask (`torch.LongTensor` of shape `(batch, cached_length + length)`, *optional*): 0 for padding; what a cache
            holds of the segment included.
        position_ids (`torch.LongTensor` of shape `(batch or 1, length)`, *optional*): If not as the mask says.
        is_sum (`torch.BoolTensor` of shape `(batch, length)`, *optional*): Where `<sum>` stands.
    """

    embeds: torch.Tensor
    mask: torch.LongTensor | None = None
    position_ids: torch.LongTensor | None = None
    is_sum: torch.BoolTensor | None = None

    def split(self, segment_lengths: list[int]) -> Iterator["Text"]:
        others = (split_optional(tensor, segment_lengths) for tensor in (self.mask, self.position_ids, self.is_sum))
        return starmap(Text, zip(self.embeds.split(segment_lengths, dim=1), *others, strict=True))


@dataclass(frozen=True)
class PrefixKeys:
    """
    Keys and values of the first vectors of a prefix, with their gradient: later segments do not read these again.

    Accumulated vectors stand in front of every segment, and attention is causal: what a layer makes of them depends on
    nothing that comes after them.

    Args:
        parts (`tuple(tuple(tuple(torch.Tensor, torch.Tensor)))`): For every pass over vectors, keys and values of
            each layer, `(rows, heads, vectors, head_dim)`. The passes stay apart, so that segments share them.
    """

    parts: tuple[tuple[LayerKeys, ...], ...] = ()

    @property
    def length(self) -> int:
        """Vectors whose keys are here."""
        return sum(layers[0][0].shape[2] for layers in self.parts)

    def write_to(self, cache: "Cache"):
        """Puts the keys in front of an empty cache."""
        for index, parts in enumerate(zip(*self.parts, strict=True)):
            keys, values = (torch.cat(tensors, dim=2) for tensors in zip(*parts, strict=True))
            cache.update(keys, values, index)

    def followed_by(self, first: list[LayerKeys], length: int) -> "PrefixKeys":
        """The keys of the first `length` vectors: with copies of the `first` of a segment, not those of its text."""
        if length <= self.length:
            return self
        new = slice(length - self.length)
        return PrefixKeys((*self.parts, tuple((k[:, :, new].clone(), v[:, :, new].clone()) for k, v in first)))


@dataclass(frozen=True)
class Prefix:
    """
    What a segment begins with: the summary vectors of the text before it, its softprompt.

    Args:
        vectors (`torch.Tensor` of shape `(batch or 1, prefix_length, embedding_dim)`): The vectors.
        weights (`torch.Tensor` of shape `(batch or 1, prefix_length)`, *optional*): How much of each is attended to,
            from 0 to 1; integers are a mask. `None`: all of all.
        keys ([`PrefixKeys`]): What the layers made of the first vectors, which are not read again.
    """

    vectors: torch.Tensor
    weights: torch.Tensor | None = None
    keys: PrefixKeys = field(default_factory=lambda: PrefixKeys())  # torch.compile calls no class here

    @property
    def length(self) -> int:
        return self.vectors.shape[1]

    @property
    def mask(self) -> torch.Tensor:
        """The weights, of which `(1, prefix_length)` ones stand for `None`."""
        return mask_or_ones(self.weights, self.length, self.vectors.device)

    def followed_by(self, vectors: torch.Tensor, weights: torch.Tensor | None, accumulate: bool) -> "Prefix":
        """
        The prefix of the next segment: old and new vectors (paper, section 3.2), or the new ones only (RMT).

        Rows without new vectors keep what they have. The keys are those of `self`: where vectors are replaced there
        are none.
        """
        if vectors.shape[1] == 0:
            return self
        new = Prefix(vectors.to(self.vectors.dtype), weights)
        if self.weights is None and weights is None:
            return replace(self, vectors=torch.cat([self.vectors, new.vectors], dim=1)) if accumulate else new
        if not accumulate and weights is None:
            return new
        # (batch, vectors of each)
        old_mask, new_mask = (part.mask.expand(len(part.vectors), -1) for part in (self, new))
        if not accumulate:
            return Prefix(*replace_rows(self.vectors, old_mask, new.vectors, new_mask))
        vectors, mask = torch.cat([self.vectors, new.vectors], dim=1), torch.cat([old_mask, new_mask], dim=1)
        return replace(self, vectors=vectors, weights=mask)

    def detach_first(self, num_vectors: int) -> "Prefix":
        """Returns the prefix with its first vectors detached, where gradients then end; its keys are left alone."""
        weights = None if self.weights is None else detach_first(self.weights, num_vectors)
        return replace(self, vectors=detach_first(self.vectors, num_vectors), weights=weights)


def detach_first(tensor: torch.Tensor, num_columns: int) -> torch.Tensor:
    """Returns `(batch, length, ...)` with its first columns detached."""
    if num_columns == 0:
        return tensor
    return torch.cat([tensor[:, :num_columns].detach(), tensor[:, num_columns:]], dim=1)


def replace_rows(
    old: torch.Tensor, old_mask: torch.Tensor, new: torch.Tensor, new_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the new `(rows, vectors, dim)` and their mask, or the old where a row has no new ones; of one width.

    A row has new vectors if its first one is attended to.
    """
    width = max(old.shape[1], new.shape[1])
    old, new = (F.pad(vectors, (0, 0, 0, width - vectors.shape[1])) for vectors in (old, new))  # (rows, width, dim)
    old_mask, new_mask = (F.pad(mask, (0, width - mask.shape[1])) for mask in (old_mask, new_mask))  # (rows, width)
    is_new = new_mask[:, :1] > 0  # (rows, 1)
    return torch.where(is_new[..., None], new, old), torch.where(is_new, new_mask, old_mask)


def join_hidden_states(segments: list[tuple | None]) -> tuple[torch.Tensor, ...] | None:
    """Joins the hidden states of the segments, layer by layer, along the text."""
    if segments[0] is None:
        return None
    return tuple(torch.cat(layer, dim=1) for layer in zip(*segments, strict=True))


def join_attentions(segments: list[tuple | None]) -> tuple | None:
    """Returns the attentions of the only segment, or a tuple of those of each, which are over different keys."""
    return segments[0] if len(segments) == 1 or segments[0] is None else tuple(segments)


__all__ = [
    "Prefix",
    "PrefixKeys",
    "Text",
    "append_sum_tokens",
    "equal_segment_lengths",
    "join_attentions",
    "join_hidden_states",
    "mask_or_ones",
    "resolve_segment_lengths",
]
